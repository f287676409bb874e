"""The camera: a process that takes 30 images a second, finds the target in each, and shares where it is."""

import sys
import time

import numpy as np

import rtloop

WIDTH, HEIGHT = 160, 120
VIEW = 1.0  # rad, from the left edge of an image to the right one
SIGHTING = np.dtype([("angle", "f8"), ("seen", "i8")], align=True)


def take_image(target: float, head: float, random: np.random.Generator) -> np.ndarray:
    """Return an image with a bright spot where the target is, seen from the head."""
    x = WIDTH * (0.5 + (target - head) / VIEW)
    columns = np.exp(-(((np.arange(WIDTH) - x) / 3) ** 2))
    rows = np.exp(-(((np.arange(HEIGHT) - HEIGHT / 2) / 3) ** 2))
    return 255 * np.outer(rows, columns) + random.normal(0, 8, (HEIGHT, WIDTH))


def find_target(image: np.ndarray) -> float | None:
    """Return the angle of the bright spot from the middle of the image, or None if there is none."""
    weights = np.where(image > 80, image, 0).sum(axis=0)
    if weights.sum() < 1000:
        return None
    return float((weights @ np.arange(WIDTH) / weights.sum() / WIDTH - 0.5) * VIEW)


def work(seconds: float, image: np.ndarray) -> None:
    """Keep the CPU busy, as a neural network would."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        np.fft.rfft2(image)


def main(share: str) -> None:
    """Share a sighting for each image, until this process is killed."""
    random = np.random.default_rng()
    head = rtloop.Latest("f8", share=f"{share}/angle", role="reader")
    with rtloop.Latest(SIGHTING, share=f"{share}/sighting") as sighting:  # takes over from a camera that was killed
        print("camera", sighting.written, flush=True)
        while True:
            begun = time.monotonic()
            seen = time.monotonic_ns()
            target = 0.3 * np.sin(2 * np.pi * 0.5 * begun)
            angle = float(head.read())
            image = take_image(target, angle, random)
            found = find_target(image)
            work(random.choice([0.001, 0.005, 0.1], p=[0.6, 0.3, 0.1]), image)  # some images take 100 ms
            if found is not None:
                sighting.write((angle + found, seen))
            time.sleep(max(0.0, begun + 1 / 30 - time.monotonic()))


if __name__ == "__main__":
    main(sys.argv[1])
