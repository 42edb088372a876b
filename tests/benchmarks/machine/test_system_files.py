import pytest

from benchmarks.machine.system_files import Unavailable, matching, read_fields, read_number, read_numbers, read_text


def write(root, name, content):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_text_comes_without_what_the_kernel_puts_around_it(tmp_path):
    write(tmp_path, "proc/device-tree/model", "Jetson Orin Nano\0")

    assert read_text(tmp_path, "proc/device-tree/model") == "Jetson Orin Nano"


def test_a_file_that_is_not_there_is_no_error_and_says_so(tmp_path):
    missing = Unavailable("no /sys/nothing")

    assert read_text(tmp_path, "sys/nothing") == missing
    assert read_number(tmp_path, "sys/nothing") == missing
    assert read_numbers(tmp_path, "sys/nothing") == missing
    assert read_fields(tmp_path, "sys/nothing", ":") == missing
    assert matching(tmp_path, "sys/*") == []


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    (tmp_path / "sys").mkdir()

    assert read_text(tmp_path, "sys") == Unavailable("/sys: Is a directory")


@pytest.mark.parametrize(("content", "value"), [("42\n", 42.0), ("-1500", -1500.0)])
def test_a_number_is_read(content, value, tmp_path):
    write(tmp_path, "sys/value", content)

    assert read_number(tmp_path, "sys/value") == value


def test_what_is_no_number_is_quoted(tmp_path):
    write(tmp_path, "sys/value", "<unsupported>")

    assert read_number(tmp_path, "sys/value") == Unavailable("/sys/value holds '<unsupported>', not a number")
    assert read_numbers(tmp_path, "sys/*") == Unavailable("/sys/value holds '<unsupported>', not a number")


def test_numbers_leave_out_what_cannot_be_read(tmp_path):
    for name, content in (("a", "1"), ("b", "broken"), ("c", "3")):
        write(tmp_path, f"sys/{name}", content)

    assert read_numbers(tmp_path, "sys/*") == [1.0, 3.0]


def test_fields_keep_the_first_value_of_a_key(tmp_path):
    write(tmp_path, "etc/os-release", 'PRETTY_NAME="A system"\nnothing\nPRETTY_NAME="Another"\n')

    assert read_fields(tmp_path, "etc/os-release", "=") == {"PRETTY_NAME": "A system"}
