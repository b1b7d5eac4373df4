"""Time and memory of building, training and sampling a map of a large field, each case in a fresh
process on one thread.

``python -m tests.benchmarks.build_memory [CASE ...]`` prints one JSON line a case: CPU seconds of
``for_problem``, of three training steps with a batch of 4 and of two draws, and the peak memory of
the process (imports included) after each, in MB.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from deepinv.physics import Blur, GaussianNoise, Inpainting
from deepinv.physics.functional import gaussian_blur
from torch import Tensor

import vfm_inverse as vi
from vfm_inverse.operators import PointObservations


def smooth(shape: tuple[int, ...], reach: float = 6.0) -> Callable[[int], Tensor]:
    """Periodic random fields with a Gaussian-like spectrum and a rough remainder; colours are
    correlated to 0.9."""
    channels, height, width = shape
    rows, columns = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
    root = 1 / (1 + (reach * 6.28) ** 2 * (rows[:, None] ** 2 + columns**2))
    root = root / (torch.fft.irfft2(root, s=(height, width))).square().sum().sqrt()

    def draw(num: int) -> Tensor:
        noise = torch.randn(num, channels, height, width)
        noise = 0.9**0.5 * noise[:, :1] + 0.1**0.5 * noise if channels > 1 else noise
        return torch.fft.irfft2(torch.fft.rfft2(noise) * root, s=(height, width))

    return draw


def blur(*shape: int) -> vi.InverseProblem:
    physics = Blur(gaussian_blur(sigma=(1.5, 1.5)), "reflect", noise_model=GaussianNoise(0.05))
    return vi.InverseProblem(smooth(shape), physics=physics)


def fixed_mask(*shape: int) -> vi.InverseProblem:
    torch.manual_seed(0)
    mask = (torch.rand(1, *shape[1:]) < 0.5).float().expand(shape).contiguous()
    mask[..., shape[1] // 3 : shape[1] // 2, shape[2] // 3 : shape[2] // 2] = 0
    physics = Inpainting(shape, mask=mask, noise_model=GaussianNoise(0.05))
    return vi.InverseProblem(smooth(shape), physics=physics)


def masks(*shape: int) -> vi.InverseProblem:
    def params(num: int) -> dict[str, Tensor]:
        share = 0.3 + 0.4 * torch.rand(num, 1, 1, 1)
        return {"mask": (torch.rand(num, 1, *shape[1:]) < share).float().expand(num, *shape)}

    physics = Inpainting(shape, mask=torch.ones(shape), noise_model=GaussianNoise(0.05))
    return vi.InverseProblem(smooth(shape), physics=physics, params=params)


def stations(*shape: int) -> vi.InverseProblem:
    torch.manual_seed(0)
    physics = PointObservations(shape, torch.rand(60, 2), noise_model=GaussianNoise(0.05))
    return vi.InverseProblem(smooth(shape), physics=physics)


def non_linear(*shape: int) -> vi.InverseProblem:
    def simulator(x: Tensor) -> Tensor:
        return x.clamp_min(0) + 0.05 * torch.randn_like(x)

    return vi.InverseProblem(smooth(shape), simulator=simulator)


def photographs(size: int) -> vi.InverseProblem:
    """Colour patches of the photographs that scikit-image ships, deblurred."""
    from importlib import resources

    from skimage import io

    from vfm_inverse.problems.shared import photographs as shipped

    pictures = []
    for name in shipped.TRAIN:
        with resources.as_file(resources.files("skimage") / "data" / name) as file:
            picture = torch.from_numpy(io.imread(file)).float() / 255
        if picture.dim() == 3:
            pictures.append(picture[..., :3].movedim(-1, 0))

    def draw(num: int) -> Tensor:
        found = torch.empty(num, 3, size, size)
        for i, which in enumerate(torch.randint(len(pictures), (num,)).tolist()):
            room = torch.tensor(pictures[which].shape[1:]) - size + 1
            row, column = (torch.rand(2) * room).long().tolist()
            found[i] = pictures[which][:, row : row + size, column : column + size]
        return found

    physics = Blur(gaussian_blur(sigma=(1.5, 1.5)), "reflect", noise_model=GaussianNoise(0.05))
    return vi.InverseProblem(draw, physics=physics)


CASES: dict[str, Callable[[], vi.InverseProblem]] = {
    "blur 1x96x80": lambda: blur(1, 96, 80),
    "blur 1x128x128": lambda: blur(1, 128, 128),
    "masks 1x128x128": lambda: masks(1, 128, 128),
    "photographs 3x128x128": lambda: photographs(128),
    "masks 3x128x128": lambda: masks(3, 128, 128),
    "blur 1x256x256": lambda: blur(1, 256, 256),
    "fixed mask 1x256x256": lambda: fixed_mask(1, 256, 256),
    "masks 1x256x256": lambda: masks(1, 256, 256),
    "stations 1x256x256": lambda: stations(1, 256, 256),
    "non-linear 1x256x256": lambda: non_linear(1, 256, 256),
    "blur 1x89x180": lambda: blur(1, 89, 180),
    "blur 1x127x3": lambda: blur(1, 127, 3),
    "blur 1x37x49": lambda: blur(1, 37, 49),
    "blur 1x512x512": lambda: blur(1, 512, 512),
}


def peak() -> int:
    """Most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def child(case: str) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {"case": case, "imports_mb": peak()}
    problem = CASES[case]()

    def timed(name: str, action: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = action()
        found[f"{name}_s"] = round(time.process_time() - began, 1)
        found[f"{name}_mb"] = peak()
        return result

    vfm = timed("build", lambda: vi.VariationalFlowMap.for_problem(problem, seed=0))
    found["start"], found["whitening"] = type(vfm.start).__name__, vfm.config["whitening"]
    print(json.dumps(found), flush=True)
    _, y, params = problem.simulate(1, seed=1)
    timed("sample", lambda: vfm(y, **params).sample((2,)))
    timed("fit", lambda: vi.fit(vfm, problem, steps=3, batch_size=4, seed=0))
    print(json.dumps(found), flush=True)


def main() -> None:
    for case in sys.argv[1:] or CASES:
        command = [sys.executable, "-m", "tests.benchmarks.build_memory", "--child", case]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = done.stdout.splitlines()
        print(lines[-1] if lines else case, flush=True)
        if done.returncode:
            print(f"{case} failed: {done.stderr[-600:]}", flush=True)


if __name__ == "__main__":
    if "--child" in sys.argv:
        child(sys.argv[-1])
    else:
        main()
