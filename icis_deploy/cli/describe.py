"""`icis-deploy describe`."""

from __future__ import annotations

from pathlib import Path

import click

from icis_deploy.cli.options import EXISTING_FILE, NEW_PATH
from icis_deploy.cli.output import format_option, print_result


@click.command(short_help="Make descriptors from class names.")
@click.argument("classes", type=EXISTING_FILE, nargs=-1, required=True)
@click.option("--texts", type=EXISTING_FILE, help="What classes are called: class name, tab, text on each line.")
@click.option("--vectors", type=EXISTING_FILE, help="Word vectors as text, also .gz: GloVe, word2vec, Numberbatch.")
@click.option("--model", metavar="FOLDER", help="A transformers or sentence-transformers model, or its hub name.")
@click.option("--template", "templates", multiple=True, help="A prompt for the model, such as 'a photo of a {}.'.")
@click.option("--out", type=NEW_PATH, required=True, help="The file to write, such as descriptors.npz.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@format_option
def describe(
    classes: tuple[Path, ...],
    texts: Path | None,
    vectors: Path | None,
    model: str | None,
    templates: tuple[str, ...],
    out: Path,
    overwrite: bool,
) -> None:
    """Make a descriptor of every class in the lists CLASSES, seen and unseen ones, from what they are called.

    Without --texts the class names themselves are read, `_` and `+` as spaces. Give --vectors or --model. Several
    texts of a class and several --template are averaged. A model in a folder is read as it is; only a hub name is
    downloaded.
    """
    from icis_deploy.api.describe import describe as describe_classes
    from icis_deploy.api.describe import indistinguishable_classes
    from icis_deploy.common.files import check_free
    from icis_deploy.descriptors.files import check_descriptor_name, save_descriptors
    from icis_deploy.head.class_names import load_class_list

    check_free(out, overwrite=overwrite)
    check_descriptor_name(out)  # a text model may take minutes
    names = tuple(dict.fromkeys(name for path in classes for name in load_class_list(path)))
    made = describe_classes(names, texts=texts, vectors=vectors, model=model, templates=templates)
    save_descriptors(made, out)
    same = indistinguishable_classes(made)
    result = {
        "descriptors": str(out),
        "num_classes": made.num_classes,
        "descriptor_dim": made.descriptor_dim,
        "same_descriptor": [list(group) for group in same],
    }
    lines = [f"{out}: {made.num_classes} classes, {made.descriptor_dim} numbers each, from {vectors or model}."]
    lines += [f"Warning: the same descriptor for {', '.join(group)}; give them different texts." for group in same]
    print_result(result, text="\n".join(lines), after_change=True)
