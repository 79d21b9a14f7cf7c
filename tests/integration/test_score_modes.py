"""`trl-dpo-ext score` with --protocol rewardbench, --rank and --compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.support import scoring, tiny
from tests.support.parsed_page import ParsedPage
from trl_dpo_ext.cli import main as cli

FLAGS = ["--use_cpu", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true", "--output_dir", "run"]
PAIRS = [
    {"prompt": f"say {word}", "chosen": " yes", "rejected": f" no {word}", "subset": subset}
    for word, subset in (("yes", "hep-go"), ("sky", "hep-go"), ("dog", "mt-bench-hard"), ("blue", "mine"))
]
LISTS = [
    {"prompt": "say yes", "completions": [" yes", " no", " well that is"], "scores": [2.0, 1.0, None]},
    {"prompt": "say no", "completions": [" no"], "scores": [1.0]},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    saved = scoring.saved_models(folder)
    scoring.saved_adapter(folder / "other", saved["base"], 8)
    Dataset.from_list(PAIRS).to_json(str(folder / "pairs.jsonl"))
    Dataset.from_list(LISTS).to_json(str(folder / "lists.jsonl"))
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return scoring.linked(models, tmp_path)


def run(*flags: str, policy: str = "adapter", data: str = "pairs.jsonl") -> int:
    return cli.main(["score", "--model_name_or_path", policy, "--dataset_name", data, *FLAGS, *flags])


def score(*flags: str, **given: str) -> dict[str, Any]:
    assert run("--json", "s.json", *flags, **given) == 0
    return json.loads(Path("s.json").read_text())


class TestRewardBench:
    def test_sections_are_printed_in_all_three_outputs(self, folder: Path, capsys: Any) -> None:
        data = score("--protocol", "rewardbench", "--output", "s.parquet", "--html", "s.html", "--max_length", "6")
        assert (data["arguments"]["protocol"], data["arguments"]["beta"], data["rows"]["cut"]) == (
            "rewardbench",
            1.0,
            0,
        )
        sections = data["rewardbench"]["sections"]
        assert sections["Reasoning"]["score"] == data["rewardbench"]["subsets"]["hep-go"]["accuracy"]
        assert (sections["Safety"]["score"], data["rewardbench"]["other_subsets"]) == (None, ["mine"])
        printed = " ".join(capsys.readouterr().out.split())
        assert "tokenized as RewardBench does" in printed
        assert "RewardBench (ties are wrong) Chat Hard" in printed
        assert "overall - without Chat, Safety" in printed
        page = Path("s.html").read_text()
        assert "RewardBench (ties are wrong)" in page
        shown = json.loads(page.split('<script type="application/json"')[1].split(">", 1)[1].split("</script>")[0])
        assert "".join(shown["rows"][0]["chosen"]).split() == [
            "<assistant>",
            "yes",
            "<eos>",
            "<eos>",
        ]  # what was scored
        assert len(shown["rows"][0]["ratios"]["chosen"]) == len(shown["rows"][0]["chosen"])
        written = Dataset.from_parquet("s.parquet")
        for row in written.to_list():
            margin = row["dpo_policy_chosen_logps"] - row["dpo_ref_chosen_logps"]
            margin -= row["dpo_policy_rejected_logps"] - row["dpo_ref_rejected_logps"]
            assert row["dpo_margin"] == pytest.approx(margin, abs=1e-4)

    def test_wrong_rows_and_flags_are_listed_together(self, folder: Path, capsys: Any) -> None:
        assert (
            run(
                "--protocol",
                "rewardbench",
                "--min_accuracy",
                "2",
                "--normalize",
                "mean",
                "--beta",
                "1",
                data="lists.jsonl",
            )
            == 2
        )
        listed = capsys.readouterr().err
        assert "the dataset has prompt, completions, scores. Set" in listed
        for words in ("--min_accuracy must be", "takes the sum of log-ratios", "rewardbench has no beta"):
            assert words in listed


class TestRank:
    def test_rewards_and_order_are_written_and_agreement_is_printed(self, folder: Path, capsys: Any) -> None:
        data = score("--rank", "--output", "s.jsonl", data="lists.jsonl")
        rows = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
        assert [row["completions"] for row in rows] == [row["completions"] for row in LISTS]
        for row in rows:
            order = row["dpo_order"]
            assert [row["dpo_rewards"][at] for at in order] == sorted(row["dpo_rewards"], reverse=True)
        assert (data["ranking"]["compared"], data["ranking"]["pairs"]["n"], data["output"]["rows"]) == (1, 1, 2)
        printed = " ".join(capsys.readouterr().out.split())
        assert "completions 4; 2 prompts with 1 to 3 each best completion" in printed
        assert "Kendall's tau-b" in printed
        assert not Path("s.jsonl.work").exists()

    def test_a_file_with_one_row_per_completion_keeps_its_rows(self, folder: Path) -> None:
        rows = [("a", " yes", 1), ("b", " no", 0), ("a", " no", 0)]
        Dataset.from_list([{"prompt": p, "completion": c, "rank": r} for p, c, r in rows]).to_json("rows.jsonl")
        score("--rank", "--output", "s.parquet", data="rows.jsonl")
        written = Dataset.from_parquet("s.parquet")
        assert written["prompt"][:] == ["a", "b", "a"]
        assert sorted([written["dpo_rank"][0], written["dpo_rank"][2]]) == [0, 1]
        assert written["dpo_rank"][1] == 0

    def test_a_page_holds_the_completions_as_they_are_written(self, folder: Path) -> None:
        data = score("--rank", "--output", "s.jsonl", "--html", "s.html", data="lists.jsonl")
        rows = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
        shown = ParsedPage(Path("s.html").read_text()).data
        assert shown["total"] == len(rows) == data["ranking"]["prompts"]
        for each in shown["rows"]:
            row = rows[each["row"]]
            assert [one["text"] for one in each["completions"]] == [row["completions"][at] for at in row["dpo_order"]]
            rewards = [row["dpo_rewards"][at] for at in row["dpo_order"]]
            assert [one["reward"] for one in each["completions"]] == pytest.approx(rewards, abs=1e-6)
        renamed = Dataset.from_list(rows).select_columns(["prompt", "completions"]).rename_column("prompt", "question")
        renamed.to_json("renamed.jsonl")
        score("--rank", "--html", "r.html", "--dataset_columns", "prompt=question", data="renamed.jsonl")
        again = ParsedPage(Path("r.html").read_text()).data
        assert {each["prompt"] for each in again["rows"]} == {each["prompt"] for each in shown["rows"]}

    def test_what_is_about_pairs_is_refused(self, folder: Path, capsys: Any) -> None:
        flags = ["--keep", "margin > 0", "--output", "s.parquet", "--compare", "other", "--score_columns", "a", "b"]
        assert run("--rank", *flags, data="lists.jsonl") == 2
        listed = capsys.readouterr().err
        assert [f"--{name} is about pairs" in listed for name in ("keep", "compare", "score_columns")] == [True] * 3


class TestCompare:
    def test_the_reference_is_computed_once_and_named(self, folder: Path, capsys: Any) -> None:
        data = score("--compare", "other", "--work_dir", "work")
        found = data["compare"]
        assert found["reference"] == data["arguments"]["reference"]
        assert found["reference_identity"] == data["arguments"]["reference_identity"]
        assert found["policy_identity"] != data["arguments"]["policy_identity"]
        assert not Path("work/compare/reference").exists()
        assert found["difference"] == pytest.approx(found["second"]["accuracy"] - found["first"]["accuracy"])
        low, high = found["margin"]["interval"]
        assert low <= found["margin"]["difference"] <= high
        assert data["rewardbench"]["subsets"]["hep-go"]["n"] == 2  # by its names, whatever the protocol
        printed = " ".join(capsys.readouterr().out.split())
        assert "second reference base" in printed
        assert "second margin" in printed

    def test_a_second_policy_with_a_start_of_another_kind_has_a_reference_of_its_own(self, folder: Path) -> None:
        tiny.saved_model("base2", seed=3)
        scoring.saved_adapter(folder / "third", str(folder / "base2"), 9)
        data = score("--compare", "third", "--work_dir", "work")
        assert "base2" in data["compare"]["reference"]
        assert data["compare"]["reference_identity"] != data["arguments"]["reference_identity"]

    def test_both_policies_are_scored_by_the_protocol(self, folder: Path) -> None:
        data = score("--compare", "other", "--protocol", "rewardbench")
        alone = score("--protocol", "rewardbench", policy="other")
        assert data["compare"]["margin"]["second"] == pytest.approx(alone["margin"]["mean"], abs=1e-4)
