"""What is no Python file is said in one sentence, whoever asks for it."""

from objectives.rows import refusal

from logratio.objectives import load_file


def test_a_file_that_no_importer_reads(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("grpo is an objective\n")
    assert refusal(load_file, file) == (
        f"`{file}` can not be imported, but it must be a Python file"
    )
