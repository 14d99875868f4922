"""The page says what the record says, carries everything with it, and is the same for the same record."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from _written import accept_digest, judge_again

from expunge.base.errors import RunError, SpecError
from expunge.base.spec import parse
from expunge.base.spec_tables import VERDICTS
from expunge.reporting._toml import toml
from expunge.reporting.cards import MEANINGS, cards
from expunge.reporting.page import write_report
from expunge.reporting.record import Run
from expunge.reporting.svg import drawing, panel


class Reader(HTMLParser):
    """Collects ids and text, and holds that elements are closed in order."""

    VOID = ("meta", "link", "br", "img", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def test_verdicts_reasons_and_numbers_are_there(run_folder: Path) -> None:
    text = Reader(page_of(run_folder)).text
    for verdict in json.loads((run_folder / "verdicts.json").read_text()):
        for flag in verdict["flags"]:
            assert MEANINGS[flag] in text
        for reason in verdict["reasons"]:
            assert reason in text
    assert "knows accuracy on forget, % 20.0 retrained 10.0 90.0 retrained 10.0" in " ".join(text.split())
    assert "utility accuracy on test, % 90.0 retrained 90.0 89.9 retrained 89.9" in " ".join(text.split())
    assert "5.0 %" in text  # 40 gradients of 800
    assert "expunge run sample.toml" in text


def test_every_flag_has_a_meaning() -> None:
    assert tuple(MEANINGS) == VERDICTS


def test_the_order_of_the_page(run_folder: Path) -> None:
    headings = re.findall(r'<h2 id="(\w+)"', page_of(run_folder))
    assert headings == [
        "next",
        "verdicts",
        "estimates",
        "attacks",
        "tradeoff",
        "weights",
        "diagnosis",
        "examples",
        "costs",
        "again",
    ]


def test_what_a_diagnostic_foretold_stands_beside_what_was_measured(run_folder: Path) -> None:
    def row(what: str, value: float | str, predicts: str | None, seed: int | None = None) -> dict[str, Any]:
        facts = {"n": 3, "unit": "share", "better": "reference", "predicts": predicts}
        return {"what": what, "seed": seed, "value": value, "low": "NaN", "high": "NaN"} | facts

    rows = [row("knows <b>", 0.97, "original"), row("should know", 0.12, "reference"), row("to forget", 0.85, "range")]
    rows += [row("alone", 0.5, None), row("lost", "NaN", None), row("to forget", 0.1, "range", seed=0)]
    found = [{"diagnostic": "depth", "name": "memorization", "sentence": "Deep <i>down</i>.", "rows": rows}]
    (run_folder / "diagnosis.json").write_text(json.dumps(found))
    # A file that the manifest does not name is none of this record's.
    assert "No diagnostic ran" in Reader(page_of(run_folder)).text
    manifest = json.loads((run_folder / "manifest.json").read_text())
    manifest["files"]["diagnosis.json"] = ""
    (run_folder / "manifest.json").write_text(json.dumps(manifest))
    accept_digest(run_folder, "diagnosis.json")
    page = page_of(run_folder)
    text = Reader(page).text
    assert "depth : Deep <i>down</i>." in text and "<i>down" not in page
    # Original 100 %, retrained 10 %, the range their difference; seeds alone are not shown.
    assert re.search(r"knows <b> % 97\.0 100\.0 98\.\d to 100\.0 original", text)
    assert re.search(r"should know % 12\.0 10\.0 [\d.]+ to [\d.]+ retrained \(reference\)", text)
    assert re.search(
        r"to forget % 85\.0 90\.0 [\d.]+ to [\d.]+ range: original minus retrained alone % 50\.0 lost", text
    )


def test_the_page_stands_alone(run_folder: Path) -> None:
    page = page_of(run_folder)
    assert len(page) < 1_000_000
    assert "http:" not in page and "https:" not in page
    loaded = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
    assert set(loaded) == {"data:,", "results.jsonl", "verdicts.json", "manifest.json"}
    for name in loaded[1:]:
        assert (run_folder / name).is_file()


def test_elements_are_closed_and_ids_unique(run_folder: Path) -> None:
    read = Reader(page_of(run_folder))
    assert read.open == []
    assert [name for name, count in Counter(read.ids).items() if count > 1] == []


def test_every_reference_inside_a_drawing_resolves(run_folder: Path) -> None:
    page = page_of(run_folder)
    ids = set(Reader(page).ids)
    used = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert used and used <= ids


def drawings_of(page: str) -> list[str]:
    """Those that say what they show; what they share is in one that does not."""
    return re.findall(r"<svg [^>]*aria-label=.*?</svg>", page, flags=re.DOTALL)


def test_drawings_take_their_colours_from_the_page(run_folder: Path) -> None:
    page = page_of(run_folder)
    # Attack curves of two methods, the trade-off, the map, paths of the reference and both methods.
    assert len(drawings_of(page)) == 2 + 1 + 1 + 3
    whole = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", whole) == [] and "#0" not in whole
    assert "var(--method)" in whole and "var(--reference)" in whole and "<text" in whole


def test_what_is_written_on_an_axis_is_not_rounded() -> None:
    figure, axes = panel()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 0.01)
    axes.set_yticks([0, 0.005], ["0", "0.005"])
    found = drawing(figure, axes, "small numbers", [(0.5, 0.005, "half"), (float("nan"), 0, "nowhere")])
    svg = "".join(found.elements)
    assert ">0.005</text>" in svg and not re.search(r' (d|x|y|transform)="[^"]*\d\.\d{2,}', svg)
    [[_, y, text]] = found.chart["stops"]
    assert text == "half" and y == pytest.approx(sum(found.chart["box"]) / 2, abs=0.1)


def test_the_same_record_gives_the_same_bytes(run_folder: Path) -> None:
    assert page_of(run_folder) == page_of(run_folder)
    assert [path.name for path in run_folder.iterdir() if path.name.startswith(".")] == []


def test_what_users_write_is_escaped(run_folder: Path) -> None:
    page = page_of(run_folder)
    assert "<b>bold</b>" not in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page


def test_a_run_without_attacks_says_so(make_run: Callable[..., Path]) -> None:
    page = page_of(make_run(attacks=[]))
    assert "No attack was tried" in page
    assert 'id="attacks"' not in page


def test_what_an_attack_that_destroys_every_model_shows_is_not_believed(make_run: Callable[..., Path]) -> None:
    folder = make_run(attacks=["crush", "relearn"], destroying=("crush",))
    run, reader = Run.open(folder), Reader(write_report(folder).read_text())
    assert [card["worst"] for card in cards(run)] == ["relearn", "relearn"]
    assert run.worst("hidden", ("accuracy", "forget"))["attack"] == "relearn"
    rows = [audit for card in cards(run) for audit in card["audits"] if audit["name"] == "accuracy on forget"]
    assert {audit["when"] for audit in rows if not audit["proves"]} == {"after crush"}
    assert reader.text.count("after crush (proves nothing)") == len(rows) // 3


def test_examples_are_shown_only_where_the_record_has_them(run_folder: Path) -> None:
    assert "gallery = true" in page_of(run_folder)
    answers = [{"said": "<i>cat</i>", "knows": True}, {"said": "dog", "knows": False}]
    found = {
        "kind": "images",
        "seed": 0,
        "of": 40,
        "models": [{"model": "original", "attack": None}, {"model": "hidden", "attack": None}],
        "examples": [
            {"id": 7, "picture": "data:image/png;base64,AAAA", "trained": "cat", "true": "bird", "answers": answers},
            {"id": 8, "picture": "javascript:alert()", "trained": "dog", "true": None, "answers": answers},
        ],
    }
    give_examples(run_folder, found)
    page = page_of(run_folder)
    assert "in truth bird" in page and "&lt;i&gt;cat" in page and page.count('aria-label="knows it:"') == 2
    assert "data:image/png;base64,AAAA" in page and "javascript:" not in page


def test_texts_are_marked_up_to_the_first_wrong_letter(run_folder: Path) -> None:
    answers = [{"said": "abXd\n", "knows": False}]
    example = {"id": 7, "prompt": "say <b>", "secret": "abcd!", "answers": answers}
    models = [{"model": "hidden", "attack": "relearn"}]
    give_examples(run_folder, {"kind": "texts", "seed": 0, "of": 40, "models": models, "examples": [example]})
    page = page_of(run_folder)
    assert "<mark>ab</mark>Xd\u21b5" in page and "say &lt;b&gt;" in page and "after relearn" in page


def test_what_the_original_says_stands_beside_what_each_method_says(run_folder: Path) -> None:
    wanted = [("original", None), ("reference", None), ("hidden", None), ("hidden", "relearn")]
    said = ["abcd", "zzzz", "abzz", "abcz"]
    answers = [{"said": text, "knows": text == "abcd"} for text in said]
    example = {"id": 7, "prompt": "say ", "secret": "abcd", "answers": answers}
    models = [{"model": model, "attack": attack} for model, attack in wanted]
    give_examples(run_folder, {"kind": "texts", "seed": 0, "of": 40, "models": models, "examples": [example]})
    [table] = re.findall(r'<table class="gallery text">.*?</table>', page_of(run_folder), re.DOTALL)
    head, *rows = [
        [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>.*?</t[hd]>", row, re.DOTALL)]
        for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
    ]
    assert head == ["model", "before unlearning", "after unlearning", "after relearn"]
    assert rows == [["retrained", "trained without it", "zzzz", ""], ["hidden", "abcd", "abzz", "abcz"]]
    assert "<mark>abcd</mark>" in table and "<mark>ab</mark>zz" in table


def test_copies_are_counted_the_same_in_the_lead_and_in_the_gallery(run_folder: Path) -> None:
    spec = json.loads((run_folder / "spec.json").read_text())
    forget = {"name": "planted_text", "count": 10, "copies": 4}
    (run_folder / "spec.json").write_text(json.dumps(spec | {"forget": forget}))
    accept_digest(run_folder, "spec.json")
    answers = [{"said": "abcd", "knows": True}]
    example = {"id": 7, "prompt": "say ", "secret": "abcd", "answers": answers}
    found = {"kind": "texts", "seed": 0, "of": 40, "different": 10, "models": [{"model": "hidden", "attack": None}]}
    give_examples(run_folder, found | {"examples": [example] * 8})
    text = Reader(page_of(run_folder)).text
    assert "(10 texts in 4 copies each: 40 examples)" in text
    assert "8 of 10 different ones (40 with copies), drawn at random" in text


def give_examples(folder: Path, found: dict[str, object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    stage = manifest["stages"][0] | {"kind": "gallery", "files": {"examples": {"path": "e.json", "sha256": ""}}}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"stages": [*manifest["stages"], stage]}))
    (folder / "e.json").write_text(json.dumps(found))
    accept_digest(folder, "e.json")


def test_a_record_from_a_notebook_has_a_page_that_promises_no_command(run_folder: Path) -> None:
    for name in ("spec.json", "env.json"):
        (run_folder / name).write_text("{}")
        accept_digest(run_folder, name)
    page = page_of(run_folder)
    text = Reader(page).text
    assert "expunge run" not in text and "no command can run it again" in text
    assert "sample: is it forgotten?" in text and "results.jsonl" not in page


def test_without_retrained_models_none_are_claimed(make_run: Callable[..., Path]) -> None:
    page = page_of(make_run({"original": (1.0, None), "hidden": (0.2, 0.9)}, attacks=[], about_one_model=True))
    text = Reader(page).text
    assert "Nothing was retrained" in text and "equivalent to retraining; thin" not in text
    assert "known minus unseen, in points" in page and "retrained models with their" not in text


def test_training_that_was_done_elsewhere_has_no_cost(run_folder: Path) -> None:
    path = run_folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for stage in manifest["stages"]:
        if stage["model"] in ("original", "reference"):
            stage |= {"kind": "audit", "gradients": 0, "seconds": 0.0}
    path.write_text(json.dumps(manifest))
    text = Reader(page_of(run_folder)).text
    assert "clean 1.5 40" in text and "% of a retraining" not in text


def texts_of(chart: dict[str, Any]) -> list[str]:
    """What is read out at each stop: its numbers in the chart's form where it has one."""
    if "form" not in chart:
        return [text for _, _, text in chart["stops"]]
    return [chart["form"].format(*numbers.split(" ")) for _, _, numbers in chart["stops"]]


def test_values_to_read_out_are_those_of_the_curves(run_folder: Path) -> None:
    page = page_of(run_folder)
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', page, flags=re.DOTALL)[1])
    assert set(charts) == set(re.findall(r'data-chart="(\w+)"', page))
    named = {name.rpartition("_")[0]: chart for name, chart in charts.items()}
    told = named["Share_of_the_forget_set_that_is_known_along_the_attack__hidden__relearn"]
    texts = texts_of(told)
    # Steps that every seed has: 0 and 4.
    assert texts == ["step 0: this 20.0 %, retrained 10.0 %", "step 4: this 55.0 %, retrained 10.0 %"]
    traded = {text.partition(":")[0]: text for text in texts_of(named["Trade_off_of_forgetting__utility_and_cost"])}
    assert set(traded) == {"clean", "hidden", "retrained", "original"}
    assert "residual +80.0" in traded["hidden"] and "5.0 % of a retraining" in traded["hidden"]


def test_a_run_without_methods_has_a_page(make_run: Callable[..., Path]) -> None:
    text = Reader(page_of(make_run({"original": (1.0, None), "reference": (0.1, 0.1)}))).text
    assert "then 0 methods tried" in text


def test_one_model_of_the_users_has_an_interval_over_examples(make_run: Callable[..., Path]) -> None:
    text = Reader(page_of(make_run(about_one_model=True))).text
    assert "one model alone has an interval over examples" in text
    # Wilson's 90 % interval of 20 right among 200.
    assert re.search(r"clean 10\.0 7\.0 to 14\.0", text)


def test_values_that_are_not_finite_are_named(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    from expunge.evidence import scores

    for name in (f"scores/hidden-s{seed}-path.safetensors" for seed in range(3)):
        held = scores.load(folder, name)
        losses = held[1].values * float("nan")
        changed = scores.Scores(
            "barrier", "forget", losses, held[1].ids, "predictor", "nats", "reference", reduce="barrier"
        )
        (folder / name).write_bytes(scores.dumps([held[0], changed]))
    judge_again(folder)
    assert "not finite" in page_of(folder)


def test_an_unfinished_run_and_a_damaged_file_have_messages(run_folder: Path) -> None:
    (run_folder / "verdicts.json").write_text("[")
    accept_digest(run_folder, "verdicts.json")
    with pytest.raises(RunError, match=r"verdicts\.json: the file is damaged"):
        write_report(run_folder)
    (run_folder / "manifest.json").unlink()
    with pytest.raises(SpecError, match="not finished"):
        write_report(run_folder)


def test_the_spec_is_toml_that_reads_back(run_folder: Path) -> None:
    resolved = json.loads((run_folder / "spec.json").read_text())
    resolved["data"]["keywords"] = {"a b": [1, 2.5], "c": {"d": True}}
    read = tomllib.loads(toml(resolved))

    def known(value: object) -> object:
        """Without what is null or an empty list of tables: both mean the default."""
        if isinstance(value, dict):
            return {key: known(item) for key, item in value.items() if item is not None and item != []}
        return [known(item) for item in value] if isinstance(value, list) else value

    assert read == known(resolved)
    parse(read, run_folder)
