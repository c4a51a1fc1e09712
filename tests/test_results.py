"""What is written about the results is what the JSON files say."""

from results import figures
from results.pages import resnet_cifar
from results.pages._shared import HERE


def test_the_page_says_what_the_files_say() -> None:
    assert (HERE / "README.md").read_text() == figures.write_up(), "run `make figures`"


def test_the_table_of_the_readme_says_what_the_files_say() -> None:
    text = figures.README.read_text()
    assert text == figures.with_table(text), "run `make figures`"


def test_sparsity_at_a_drop_is_read_off_between_points() -> None:
    points = [{"sparsity": 0.5, "accuracy": 0.9}, {"sparsity": 0.7, "accuracy": 0.8}]
    assert resnet_cifar.sparsity_at_drop(points, 0.9, 0.05) == 0.6
    assert resnet_cifar.sparsity_at_drop(points, 0.9, 0.2) is None
