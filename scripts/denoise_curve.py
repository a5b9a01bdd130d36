#!/usr/bin/env python3
"""The trade-off of `vidsparse denoise`: PSNR and SSIM against sparsity, as a Markdown table.

    scripts/denoise_curve.py --vidsparse build/release/tools/vidsparse clip.mp4 ... [--json FILE]

Each clip: one window of 4 frames, both selections, and dense through the same op as sparsity 0.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

SPARSITIES = ["0", "0.5", "0.8", "0.9", "0.95", "0.98"]


def measure(command, clip, size, sparsity, selection):
    """The report of one run."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        subprocess.run(
            [command, "denoise", clip, "-o", f"{folder}/out.mp4", "--size", size, "--frames", "4",
             "--sparsity", sparsity, "--selection", selection, "--no-pictures",
             "--json", str(report)],
            check=True, stdout=subprocess.DEVNULL)
        return json.loads(report.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--vidsparse", default="vidsparse")
    parser.add_argument("--size", default="240x136")
    parser.add_argument("--json", help="write the raw reports there")
    options = parser.parse_args()

    reports = []
    print("| clip | sparsity | k | mean-norm: PSNR, SSIM | pooled: PSNR, SSIM |")
    print("|---|---|---|---|---|")
    for clip in options.clips:
        name = pathlib.Path(clip).name
        for sparsity in SPARSITIES:
            # With every tile selected there is no choice to make.
            selections = ["mean-norm"] if sparsity == "0" else ["mean-norm", "pooled"]
            cells = []
            for selection in selections:
                report = measure(options.vidsparse, clip, options.size, sparsity, selection)
                report |= {"clip_name": name, "sparsity": float(sparsity)}
                reports.append(report)
                quality = report["denoised"]
                cells.append(f"{quality['psnr']:.2f}, {quality['ssim']:.4f}")
            cells += ["the same"] * (2 - len(cells))
            print(f"| {name} | {sparsity} | {report['top_k']} of {report['tiles']} | {cells[0]} | "
                  f"{cells[1]} |", flush=True)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(reports, indent=1) + "\n")


if __name__ == "__main__":
    main()
