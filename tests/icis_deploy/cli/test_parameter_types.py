import click
import pytest

from icis_deploy.cli.main import cli, run
from icis_deploy.cli.parameter_types import Choice, ExistingPath, NewPath, Number


def test_a_word_is_taken_and_of_another_the_closest_is_named():
    kind = Choice(["fused", "updatable"])

    assert kind.convert("fused", None, None) == "fused"
    with pytest.raises(click.BadParameter, match=r"^'updateable' is not one of .*\. Did you mean 'updatable'\?$"):
        kind.convert("updateable", None, None)
    with pytest.raises(click.BadParameter, match=r"'updatable'\.$"):
        kind.convert("x", None, None)


@pytest.mark.parametrize("given", ["nan", "inf", "-inf", "1e999", "-1", "3"])
def test_a_number_outside_its_range_or_none_is_refused(given):
    kind = Number(0, 2)

    assert kind.convert("1.5", None, None) == 1.5
    with pytest.raises(click.BadParameter, match=r"is not in the range 0<=x<=2\.$"):
        kind.convert(given, None, None)


def test_no_option_takes_what_is_no_number():
    for command in cli.commands.values():
        for parameter in command.params:
            if isinstance(parameter.type, click.FloatRange):
                assert isinstance(parameter.type, Number), f"{command.name} {parameter.name}"


def test_a_path_is_taken_and_of_another_the_closest_in_its_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "classes.txt").touch()
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path)
    kind = ExistingPath(dir_okay=False, expected="Name a list.")

    assert kind.convert("classes.txt", None, None) == "classes.txt"
    for given, named in (("clases.txt", "classes.txt"), (f"{tmp_path}/clases.txt", f"{tmp_path}/classes.txt")):
        with pytest.raises(click.BadParameter, match=rf"does not exist\. Name a list\. Did you mean '{named}'\?$"):
            kind.convert(given, None, None)
    with pytest.raises(click.BadParameter, match=r"is a directory\. Name a list\.$"):
        kind.convert("new", None, None)
    for given in ("none/at/all.txt", "zebra"):
        with pytest.raises(click.BadParameter, match=r"does not exist\. Name a list\.$"):
            kind.convert(given, None, None)


def test_a_command_says_what_was_probably_meant(tmp_path, capsys):
    (tmp_path / "bundle").mkdir()

    assert run(["classes", str(tmp_path / "bundel")]) == 2

    said = " ".join(capsys.readouterr().err.split())
    assert f"Name a bundle: the folder that `icis-deploy export` wrote. Did you mean '{tmp_path}/bundle'?" in said


def test_no_option_takes_an_empty_text_for_a_path():
    for command in cli.commands.values():
        for parameter in command.params:
            if isinstance(parameter.type, click.Path) and not parameter.type.exists:
                assert isinstance(parameter.type, NewPath), f"{command.name} {parameter.name}"


@pytest.mark.parametrize("option", ["--out", "--logs"])
def test_an_empty_path_is_refused_and_nothing_is_written_here(option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle").mkdir()

    assert run(["bench", "bundle", option, ""]) == 2

    assert f"'{option}': The path is empty. Name a path; where a variable says it" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["bundle"]


def test_a_seed_that_torch_does_not_take_is_refused_by_every_command(capsys):
    with_seed = [name for name, command in cli.commands.items() if any(each.name == "seed" for each in command.params)]
    assert len(with_seed) >= 4
    for name in with_seed:
        assert run([name, "--seed", str(1 << 63)]) == 2
        assert "is no seed: at most 2^63 - 1 is taken" in capsys.readouterr().err, name
