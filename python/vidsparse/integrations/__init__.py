"""Video Sparse Attention inside other people's models."""
