"""Read a few photos of new classes, and run a model's backbone on them."""

from __future__ import annotations

from icis_deploy.api.models import OpenedModel
from icis_deploy.api.seen_images import read_images
from icis_deploy.errors import ImageError
from icis_deploy.images.preprocessing import Preprocessing
from icis_deploy.injection.options import InjectionOptions
from icis_deploy.injection.photos import NewClassPhotos


def load_photos(
    opened: OpenedModel, options: InjectionOptions, preprocessing: Preprocessing | None
) -> NewClassPhotos | None:
    """Return the photos that the options name, as the model's head sees them; `None` if they name none.

    Args:
        opened: A model whose classes are known.
        options: `photos` in any of its forms.
        preprocessing: How images are prepared; features need none.

    Raises:
        UsageError: If nothing says how images are prepared.
        ImageError: If photos cannot be read, have no class, or are among the images of seen classes.
        IncompatibleError: If features do not fit the head.
    """
    if options.photos is None:
        return None
    read = read_images(
        options.photos, opened, preprocessing, skip_unreadable=options.skip_unreadable, what="photos of new classes"
    )
    if read.labels is None:
        raise ImageError(
            f"Nothing says which new classes the photos of {read.where} show.",
            found="no class",
            expected="a list with the columns file and class, or a folder for each class",
            where=read.where,
            hint=(
                "Put the photos of each class into a folder of its name, or list them in a CSV with the"
                " columns file and class."
            ),
        )
    return NewClassPhotos(features=read.features, labels=read.labels, digests=read.digests, problems=read.problems)


def check_apart(photos: NewClassPhotos, seen_digests: tuple[str, ...]) -> None:
    """Check that no photo of a new class is also an image of a seen one.

    Args:
        photos: Of new classes.
        seen_digests: SHA-256 of the images of seen classes.

    Raises:
        ImageError: If one is.
    """
    known = set(seen_digests)
    both = [name for name, digest in zip(photos.labels, photos.digests, strict=True) if digest in known]
    if both:
        raise ImageError(
            f"{len(both)} of the photos of new classes, such as one of {both[0]!r}, are also among the images of seen "
            f"classes.",
            found=len(both),
            expected="no image in both",
            hint="Leave it out of `seen_images` or of `photos`: it shows one class.",
        )
