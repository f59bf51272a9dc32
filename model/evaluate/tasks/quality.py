"""Quality control by known faults: an image, and the same image as a scanner with a fault would have given it.

Stand-ins for the paper's private tasks 1.1 and 1.2. Each image gets one fault, or none: a patient's images take them in
turn. How strong it is, is drawn from its key. The physics are those of the textbooks (Rician noise of magnitude images,
Gudbjartsson and Patz 1995; ghosts and motion as errors of k-space lines; a smooth field of the coil; quantum noise of fewer
photons in the sinogram; a detector element with another gain as a ring).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from lumid.catalog.errors import DatasetError
from lumid.catalog.places import Anywhere
from lumid.model.evaluate.images import CatalogImages, Changed
from lumid.model.evaluate.tasks.base import Reported, Task
from lumid.model.evaluate.tasks.catalog import LEAST_PATIENTS, chosen, splits_of
from lumid.model.evaluate.tasks.reported import CT_QUALITY, MR_QUALITY

Image = npt.NDArray[np.float32]
Fault = Callable[[Image, np.random.Generator, float], Image]


def noise(image: Image, random: np.random.Generator, strength: float) -> Image:
    """Rician noise: that of both channels of a magnitude image; σ from 2 to 12 % of the range."""
    sigma = 0.02 + 0.10 * strength
    real, other = image + random.normal(0, sigma, image.shape), random.normal(0, sigma, image.shape)
    return np.asarray(np.hypot(real, other), np.float32)


def ghosting(image: Image, random: np.random.Generator, strength: float) -> Image:
    """Every second to fourth line of k-space 15 to 50 % weaker: copies along the phase direction."""
    spectrum = np.fft.fftshift(np.fft.fft2(image))
    every = int(random.integers(2, 5))
    centre, half = image.shape[0] // 2, max(2, image.shape[0] // 50)
    lines = np.ones(image.shape[0])
    lines[::every] = 1 - (0.15 + 0.35 * strength)
    lines[centre - half : centre + half] = 1
    return _magnitude(spectrum * lines[:, None])


def bias_field(image: Image, random: np.random.Generator, strength: float) -> Image:
    """A smooth gain from 1 down to 0.75 to 0.35, falling away from a point beside the image."""
    rows, columns = np.mgrid[0 : image.shape[0], 0 : image.shape[1]] / image.shape[0]
    angle = random.uniform(0, 2 * np.pi)
    distance = np.hypot(rows - 0.5 - 0.6 * np.sin(angle), columns - 0.5 - 0.6 * np.cos(angle))
    lowest = 0.75 - 0.4 * strength
    return np.asarray(image * (1 - (1 - lowest) * (distance / distance.max()) ** 1.5), np.float32)


def motion(image: Image, random: np.random.Generator, strength: float) -> Image:
    """The object moved by 2 to 10 pixels during a third of the k-space lines, not the central ones."""
    moved = np.roll(image, (round(2 + 8 * strength), int(random.integers(-3, 4))), (0, 1))
    still, other = (np.fft.fftshift(np.fft.fft2(one)) for one in (image, moved))
    count = image.shape[0]
    begin = int(random.integers(0, count // 8)) + (0 if random.random() < 0.5 else count // 2 + count // 16)
    still[begin : begin + count // 3] = other[begin : begin + count // 3]
    return _magnitude(still)


def low_dose(image: Image, random: np.random.Generator, strength: float) -> Image:
    """Quantum noise of 1/4 to 1/30 of the dose, filtered along lines as back-projection leaves it."""
    sigma = 0.015 + 0.05 * strength
    white = random.normal(0, 1, image.shape).astype(np.float32)
    smooth = cv2.GaussianBlur(white, (0, 0), 1.2) - cv2.GaussianBlur(white, (0, 0), 3.0)
    dense = 0.5 + cv2.GaussianBlur(image, (0, 0), image.shape[0] / 16)  # rays through more tissue bring fewer photons
    return np.asarray(image + sigma * dense * smooth / smooth.std(), np.float32)


def ring(image: Image, random: np.random.Generator, strength: float) -> Image:
    """One to four rings about the centre of rotation, 2 to 8 % of the range, from detector elements that read too much."""
    rows, columns = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    radius = np.hypot(rows - image.shape[0] / 2, columns - image.shape[1] / 2)
    changed = image.astype(np.float64)
    for _ in range(int(random.integers(1, 5))):
        at = random.uniform(0.05, 0.45) * image.shape[0]
        changed += random.choice([-1, 1]) * (0.02 + 0.06 * strength) * np.exp(-((radius - at) ** 2) / 2)
    return np.asarray(changed, np.float32)


MR_FAULTS: dict[str, Fault] = {"noise": noise, "ghosting": ghosting, "bias field": bias_field, "motion": motion}
CT_FAULTS: dict[str, Fault] = {"low dose": low_dose, "ring": ring}
NONE = "none"
FAULTS_VERSION = 2
"""Of the code above: features of faults that another version made are not taken for these."""


def mr_quality(data: Anywhere | None) -> Task:
    """Which fault an MR image has: none, noise, ghosting, bias field, motion."""
    return _quality("mr-quality", data, "MR", MR_FAULTS, MR_QUALITY)


def ct_quality(data: Anywhere | None) -> Task:
    """Which fault a CT image has: none, low dose, ring."""
    return _quality("ct-quality", data, "CT", CT_FAULTS, CT_QUALITY)


def _quality(name: str, data: Anywhere | None, modality: str, faults: dict[str, Fault], reported: Reported) -> Task:
    selection = chosen(name, data, f"modality = '{modality}' AND channels = 1")
    keys, patients = selection.table["key"].to_pylist(), selection.table["patient"].to_pylist()
    if len(set(patients)) < LEAST_PATIENTS:
        raise DatasetError(
            f"{name}: needs {modality} of {LEAST_PATIENTS} patients, and {data} has {len(set(patients))}"
        )
    classes = (NONE, *faults)
    labels = dealt_faults(keys, patients, len(classes))
    splits, dealt = splits_of(selection.table["split"].to_pylist(), patients, [classes[label] for label in labels])

    def change(index: int, image: Image) -> Image:
        if labels[index] == 0:
            return image
        random = np.random.default_rng(int(keys[index][:15], 16))
        return faults[classes[labels[index]]](image, random, float(random.random()))

    return Task(
        name=name,
        kind="multiclass",
        classes=classes,
        images=Changed(CatalogImages(selection), change),
        labels=np.array(labels, np.int64),
        patients=patients,
        splits=splits,
        ids=keys,
        data=data,
        version=f"{selection.version} {FAULTS_VERSION}",
        note="synthetic faults: a stand-in for the paper's private task" + "; patients dealt anew" * dealt,
        reported=reported,
    )


def dealt_faults(keys: list[str], patients: list[str], count: int) -> list[int]:
    """A fault for every image: each patient's images, in the order of a hash of their keys, take them in turn, so that
    nobody's anatomy gives a fault away, and few images hold all of them."""
    turn = {who: _number(f"lumid fault {who}") for who in set(patients)}
    labels = [0] * len(keys)
    for index in sorted(range(len(keys)), key=lambda one: _number(f"lumid fault {keys[one]}")):
        labels[index] = turn[patients[index]] % count
        turn[patients[index]] += 1
    return labels


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _magnitude(spectrum: npt.NDArray[np.complex128]) -> Image:
    return np.asarray(np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum))), np.float32)
