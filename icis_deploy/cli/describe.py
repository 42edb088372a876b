"""`icis-deploy describe`."""

from __future__ import annotations

from pathlib import Path

import click

from icis_deploy.cli.hints import all_commands, command_line_hint
from icis_deploy.cli.llm_options import LLMChoice, llm_options, tags_from_llm
from icis_deploy.cli.options import EXISTING_FILE, NEW_PATH, check_output
from icis_deploy.cli.output import format_option, print_result


@click.command(short_help="Make descriptors from words, vectors, attributes or texts.")
@click.argument("classes", type=EXISTING_FILE, nargs=-1, required=True)
@click.option("--ask", is_flag=True, help="Write the question about words to --out, for any language model.")
@click.option("--tags", type=EXISTING_FILE, help="Words for each class, or answers to --ask, however wrapped.")
@click.option("--attributes", type=EXISTING_FILE, help="Numbers for each class: .csv, att_splits.mat or .npz.")
@click.option("--vectors", type=EXISTING_FILE, help="Word vectors as text, also .gz: GloVe, word2vec, Numberbatch.")
@click.option("--texts", type=EXISTING_FILE, help="What classes are called: class name, tab, text on each line.")
@click.option("--model", metavar="FOLDER", help="A transformers or sentence-transformers model, or its hub name.")
@click.option("--template", "templates", multiple=True, help="A prompt for the model, such as 'a photo of a {}.'.")
@click.option("--blocks", type=EXISTING_FILE, help="Descriptors that are there already; the new ones are added.")
@click.option("--replace", is_flag=True, help="Let a new block take the place of one of the same name in --blocks.")
@llm_options
@click.option("--out", type=NEW_PATH, required=True, help="The file to write, such as descriptors.npz.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@format_option
def describe(
    classes: tuple[Path, ...],
    ask: bool,
    tags: Path | None,
    attributes: Path | None,
    vectors: Path | None,
    texts: Path | None,
    model: str | None,
    templates: tuple[str, ...],
    blocks: Path | None,
    replace: bool,
    llm: LLMChoice | None,
    out: Path,
    overwrite: bool,
) -> None:
    """Make a descriptor of every class in the lists CLASSES, seen and unseen ones, seen ones first.

    Several sources may be given; each is a block of the file. With none, a small text model reads the names. Without
    --texts the class names themselves are read, `_` and `+` as spaces. Several texts of a class and several --template
    are averaged. A model in a folder is read as it is; only a hub name is downloaded.

    With --ask, a question for any language model is written instead. Where it is not about all classes, add the answer
    to a file and ask again with that file as --tags, until no class is left. With --llm a server is asked: class names,
    texts and words go there, and nothing else; without this option nothing leaves this machine. Its answers are kept
    beside --out, and what is there is not asked again.
    """
    from icis_deploy.api.describe import DescribeOptions, describe_with_notes, indistinguishable_classes
    from icis_deploy.descriptors.files import check_descriptor_name, save_descriptors
    from icis_deploy.head.class_names import load_class_list

    check_output(out, overwrite=overwrite, added_to="blocks")
    names = tuple(dict.fromkeys(name for path in classes for name in load_class_list(path)))
    if ask:
        given = (attributes, vectors, model, blocks, llm)
        if any(given) or templates or replace:
            raise click.UsageError("--ask takes --tags and --texts, and no other source.")
        _write_question(names, tags=tags, texts=texts, out=out)
        return
    check_descriptor_name(out)  # a text model may take minutes
    if llm is not None and tags is not None:
        raise click.UsageError("--tags and --llm both give words. Give one of them.")
    described = describe_with_notes(
        names,
        tags=tags if llm is None else tags_from_llm(llm, names, texts=texts, out=out),
        attributes=attributes,
        vectors=vectors,
        model=model,
        texts=texts,
        blocks=blocks,
        options=DescribeOptions(templates=templates, replace=replace),
    )
    made = described.descriptors
    save_descriptors(made, out)
    same = indistinguishable_classes(made)
    notes = [command_line_hint(note, all_commands(), command="describe") for note in described.notes]
    result = {
        "descriptors": str(out),
        "num_classes": made.num_classes,
        "descriptor_dim": made.descriptor_dim,
        "blocks": [
            {"name": block.name, "width": block.width, "missing": list(made.missing_in(block.name))}
            for block in made.blocks
        ],
        "notes": notes,
        "same_descriptor": [list(group) for group in same],
    }
    widths = ", ".join(f"{block.name} {block.width}" for block in made.blocks)
    lines = [f"{out}: {made.num_classes} classes, {made.descriptor_dim} numbers each ({widths}).", *notes]
    lines += [f"Warning: the same descriptor for {', '.join(group)}; give them different texts." for group in same]
    print_result(result, text="\n".join(lines), after_change=True)


def _write_question(names: tuple[str, ...], *, tags: Path | None, texts: Path | None, out: Path) -> None:
    from icis_deploy.common.files import write_file
    from icis_deploy.descriptors.class_texts import load_class_texts
    from icis_deploy.descriptors.tag_answers import load_tag_answers
    from icis_deploy.descriptors.tag_questions import next_classes, question_about

    known = None if texts is None else load_class_texts(texts)
    words = {} if tags is None else load_tag_answers(tags, names, texts=known).tags
    asked = next_classes(names, words)
    num_left = len(names) - len(words) - len(asked)
    result = {"question": str(out) if asked else None, "num_asked": len(asked), "num_left": num_left}
    if not asked:
        print_result(result, text=f"All {len(names)} classes have words in {tags}: nothing to ask.")
        return
    write_file(out, question_about(asked, tags=words, texts=known).encode())
    lines = [f"{out}: a question about {len(asked)} classes, for any language model."]
    lines.append(
        f"Add its answer to a file and ask for the other {num_left} with --ask --tags FILE."
        if num_left
        else "Put its answer, after those before it, into a file, and give it as --tags FILE without --ask."
    )
    print_result(result, text="\n".join(lines), after_change=True)
