#pragma once

// The whole C++ interface. Start with Problem and Plan.
#include "vidsparse/backend.hpp"
#include "vidsparse/dtype.hpp"
#include "vidsparse/error.hpp"
#include "vidsparse/parallel.hpp"
#include "vidsparse/plan.hpp"
#include "vidsparse/problem.hpp"
#include "vidsparse/sequence.hpp"
#include "vidsparse/tensor.hpp"
#include "vidsparse/tile_layout.hpp"
#include "vidsparse/tile_mask.hpp"
#include "vidsparse/version.hpp"
