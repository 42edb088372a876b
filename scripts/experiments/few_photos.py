"""Measure what a few photos of new classes give: photos alone, descriptors alone, and both.

*imprinted* is weight imprinting as it was published, for comparison. T, and U at a measured loss of seen accuracy of 2
points (the threshold is set on the test images of seen classes, for all alike), besides U and loss at the product's own
operating point. Photos are drawn anew five times; the other images are the test. Images of seen classes: half of each
class's, ten at most, are the owner's.

Usage: python scripts/experiments/few_photos.py FOLDER [--model model.onnx --classes classes.txt] [--images LIST...]
           [--descriptors descriptors.npz] [--photos 1 2 5 10] [--draws 5] [--play N [--half 0|1]] [--priors]
           [--no-seen-images] [--cache FILE]
New classes are those of the images that the head lacks. With `--play N`, N known classes leave the head in each draw
and play new ones: for data without several photos of new classes, and to choose settings without a look at new ones.
`--half` lets every other class that has images play, so that settings and figures can come from different classes.
`--priors` measures numbers of photos that a predicted row may count as, in place of the three ways.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.zero_shot.budget_quality import known
from icis_deploy.api.compare import LabeledImageFeatures
from icis_deploy.api.inject import neutral_features_of
from icis_deploy.api.models import head_of, inspect
from icis_deploy.common.arrays import Bool, Float32, Int64
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.descriptors.files import load_descriptors
from icis_deploy.few_shot.refining import PhotoFeatures, refine_rows
from icis_deploy.head.head import Head
from icis_deploy.images.preprocessing import load_preprocessing
from icis_deploy.injection.arbiter.seen_images import SeenImages, macro_weights, seen_images
from icis_deploy.injection.inject import Injection, inject
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.injection.photos import NewClassPhotos, few_shot_context, inject_with_photos
from icis_deploy.injection.rows.logits import head_logits
from icis_deploy.metrics.accuracy import accuracy_report

LOSS = 0.02
MAX_OWNER = 10
WAYS = ("photos", "descriptors", "both")
PRIORS = (0.0, 0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """One draw: what is injected into, and with which images."""

    head: Head
    described: Descriptors
    new: tuple[str, ...]
    neutral: Float32 | None
    features: Float32
    labels: Int64
    """Indices of the head's classes followed by the new ones."""
    images: Int64
    """Which of the images that were read these are."""
    is_photo: Bool
    is_owner: Bool
    has_seen_images: bool
    seed: int

    @property
    def owned(self) -> SeenImages:
        """The owner's images."""
        return seen_images(self.features[self.is_owner], self.head.rows, self.labels[self.is_owner])

    def inject_with_priors(self) -> dict[str, Injection]:
        """Inject with each of `PRIORS`, at the offset of the descriptors."""
        predicted = self.inject("descriptors")
        context = few_shot_context(self.head, predicted.rows, self.owned)
        shown = self.labels[self.is_photo] - self.head.num_classes
        photos = PhotoFeatures(features=self.features[self.is_photo], classes=shown)
        return {
            f"prior {count:g}": replace(
                predicted, rows=refine_rows(predicted.rows, photos, replace(context, prior_photos=count))
            )
            for count in PRIORS
        }

    def inject(self, way: str) -> Injection:
        """Inject in one of `WAYS`; all with a constant offset."""
        known = self.owned if self.has_seen_images else None
        options = InjectionOptions(method="ridge", arbiter="off", seed=self.seed)
        if way == "descriptors":
            return inject(
                self.head,
                self.described,
                unseen=self.new,
                options=options,
                neutral_features=self.neutral,
                images=known,
            )
        shown = self.labels[self.is_photo] - self.head.num_classes
        photos = NewClassPhotos(
            features=self.features[self.is_photo],
            labels=tuple(self.new[index] for index in shown),
            digests=tuple(map(str, range(len(shown)))),
        )
        return inject_with_photos(
            self.head,
            self.described if way == "both" else None,
            photos,
            unseen=self.new,
            options=options,
            neutral_features=self.neutral,
            images=known,
        )

    def imprinted(self) -> Float32:
        """Return rows `(num_new, feature_dim + 1)` of weight imprinting as it was published.

        Weights are the mean of the photos' features at unit length, itself of unit length (Qi, Brown and Lowe, CVPR
        2018, section 3.2), here as long as the head's own on average, with their average bias.
        """
        features, shown = self.features[self.is_photo], self.labels[self.is_photo] - self.head.num_classes
        units = features / np.linalg.norm(features, axis=1, keepdims=True)
        means = np.stack([units[shown == one].mean(axis=0) for one in range(len(self.new))])
        length = np.linalg.norm(self.head.rows[:, :-1], axis=1).mean()
        weights = means * length / np.linalg.norm(means, axis=1, keepdims=True)
        biases = np.full((len(self.new), 1), self.head.rows[:, -1].mean())
        return np.concatenate([weights, biases], axis=1).astype(np.float32)

    def measure(self, rows: Float32, *, features: Float32 | None = None) -> tuple[float, float, float, float]:
        """Return T, U at a loss of 2 points on the test, and U and loss at the rows' own point, in percent.

        Args:
            rows: `(num_new, feature_dim + 1)`, with constant offsets.
            features: `(num_images, feature_dim)`, as another form of the model sees the images; by default `features`.
        """
        is_test = ~self.is_photo & ~self.is_owner
        features, labels = (self.features if features is None else features)[is_test], self.labels[is_test]
        seen = np.asarray(self.head.logits(features), dtype=np.float32)
        new = head_logits(rows, features)
        report = accuracy_report(
            np.concatenate([seen, new], axis=1), labels, seen=self.head.num_classes, original_logits=seen
        )
        leads, is_new = new.max(axis=1) - seen.max(axis=1), labels >= self.head.num_classes
        is_right = ~is_new & (seen.argmax(axis=1) == labels)
        is_hit = is_new & (new.argmax(axis=1) + self.head.num_classes == labels)
        weights = np.zeros(len(labels))
        for side in (is_new, ~is_new):
            weights[side] = macro_weights(labels[side])
        order = np.argsort(-leads[is_right])
        threshold = leads[is_right][order][int(np.searchsorted(np.cumsum(weights[is_right][order]), LOSS))]
        at_loss = float(weights @ (is_hit & (leads > threshold)))
        lost = known(report.S_original) - known(report.S)
        return 100 * known(report.T), 100 * at_loss, 100 * known(report.U), 100 * lost


def main() -> None:
    """Print the table of one data set."""
    asked = parser_of_data(__doc__ or "").parse_args()
    rows, names, features, labels, neutral = read(asked)
    described = load_descriptors(asked.folder / asked.descriptors)
    own = "" if asked.priors else "   own point: U  lost   prior counts as"
    print(f"photos  way          T (sd)        U at 2 (sd){own}")
    for num_photos in asked.photos:
        found: dict[str, list[tuple[float, ...]]] = {}
        priors: list[float] = []
        for seed in range(asked.draws):
            problem = drawn(rows, names, features, labels, neutral, described, asked, num_photos, seed)
            made = problem.inject_with_priors() if asked.priors else {way: problem.inject(way) for way in WAYS}
            if not asked.priors:
                found.setdefault("imprinted", []).append(problem.measure(problem.imprinted()))
            for way, injection in made.items():
                found.setdefault(way, []).append(problem.measure(injection.rows))
                if way == "both" and injection.photos is not None:
                    priors.append(injection.photos["prior_photos"])
        for way, values in found.items():
            mean, spread = np.mean(values, axis=0), np.std(values, axis=0)
            own = "" if asked.priors else f"     {mean[2]:4.1f}  {mean[3]:4.1f}"
            count = "   " + " ".join(f"{one:g}" for one in priors) if way == "both" else ""
            print(
                f"{num_photos:6}  {way:11}  {mean[0]:4.1f} ({spread[0]:3.1f})    {mean[1]:4.1f} ({spread[1]:3.1f})"
                f"{own}{count}",
                flush=True,
            )


def drawn(
    rows: Float32,
    names: tuple[str, ...],
    features: Float32,
    labels: tuple[str, ...],
    neutral: Float32 | None,
    described: Descriptors,
    asked: argparse.Namespace,
    num_photos: int,
    seed: int,
) -> Problem:
    """Draw new classes where known ones play them, photos of these, and the owner's images."""
    random = np.random.default_rng(seed)
    of = np.array(labels)
    in_head = set(names)
    if asked.play:
        counts = {name: int((of == name).sum()) for name in dict.fromkeys(labels)}
        able = [name for name in names if counts.get(name, 0) > num_photos]
        able = able if asked.half is None else able[asked.half :: 2]
        new = tuple(random.permutation(able)[: asked.play].tolist())
        of_known = np.isin(of, names)
    else:
        new = tuple(name for name in dict.fromkeys(labels) if name not in in_head and name in described.class_names)
        of_known = np.isin(of, [*names, *new])
    kept = [index for index, name in enumerate(names) if name not in set(new)]
    head = Head(rows=rows[kept], class_names=tuple(names[index] for index in kept))
    index_of = {name: index for index, name in enumerate((*head.class_names, *new))}
    shown = np.array([index_of[name] for name in of[of_known]], dtype=np.int64)
    is_photo, is_owner = np.zeros(len(shown), dtype=bool), np.zeros(len(shown), dtype=bool)
    for one in np.unique(shown):
        order = random.permutation(np.flatnonzero(shown == one))
        if one >= head.num_classes:
            is_photo[order[:num_photos]] = True
        else:
            is_owner[order[: min(MAX_OWNER, len(order) // 2)]] = True
    return Problem(
        head=head,
        described=described,
        new=new,
        neutral=neutral,
        features=features[of_known],
        images=np.flatnonzero(of_known),
        labels=shown,
        is_photo=is_photo,
        is_owner=is_owner,
        has_seen_images=not asked.no_seen_images,
        seed=seed,
    )


def read(
    asked: argparse.Namespace,
) -> tuple[Float32, tuple[str, ...], Float32, tuple[str, ...], Float32 | None]:
    """Return rows, class names, features, their labels and neutral features, from the cache where there is one."""
    if asked.cache is not None and asked.cache.exists():
        with np.load(asked.cache) as cached:
            return (
                cached["rows"],
                tuple(cached["classes"].tolist()),
                cached["features"],
                tuple(cached["labels"].tolist()),
                cached["neutral"],
            )
    preprocessing = load_preprocessing(asked.folder / "preprocess.json")
    opened = inspect(asked.folder / asked.model, classes=asked.folder / asked.classes)
    head = head_of(opened)
    images = [LabeledImageFeatures.load(asked.folder / name, opened, preprocessing) for name in asked.images]
    features = np.concatenate([one.features for one in images])
    labels = tuple(str(label) for one in images for label in one.labels)
    neutral = neutral_features_of(opened, preprocessing=preprocessing, seed=0)
    if asked.cache is not None and neutral is not None:
        np.savez(
            asked.cache,
            rows=head.rows,
            classes=np.array(head.class_names),
            features=features,
            labels=np.array(labels),
            neutral=neutral,
        )
    return head.rows, head.class_names, features, labels, neutral


def parser_of_data(description: str) -> argparse.ArgumentParser:
    """Return a parser of the arguments that say what is measured on."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="model.onnx")
    parser.add_argument("--classes", default="classes.txt")
    parser.add_argument("--images", nargs="+", default=["images.csv"])
    parser.add_argument("--descriptors", default="descriptors.npz")
    parser.add_argument("--photos", nargs="+", type=int, default=[1, 2, 5, 10])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--play", type=int, default=0)
    parser.add_argument("--half", type=int, choices=(0, 1))
    parser.add_argument("--priors", action="store_true")
    parser.add_argument("--no-seen-images", action="store_true")
    parser.add_argument("--cache", type=Path, help="Features, read where the file exists and written where not.")
    return parser


if __name__ == "__main__":
    main()
