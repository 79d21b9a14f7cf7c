"""What the model card leans on inside TRL, transformers and PEFT: who asks for it, and what TRL's own holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import peft
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from transformers import TrainerCallback
from trl import DPOTrainer
from trl.trainer import base_trainer

from tests.support import runs, tiny
from tests.support.seams import moved
from trl_dpo_ext import _trl

MEND = "_trl/model_card.py, model_card/"


def seam(fact: str, library: str = "TRL") -> str:
    return moved(library, fact, MEND)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return runs.trainer(tmp_path_factory.mktemp("host"), DPOTrainer, ref_model=tiny.model(seed=1))


@pytest.fixture(scope="module")
def facts(host: Any) -> dict[str, Any]:
    """The keywords that TRL makes its card of."""
    calls = []
    with _trl.card_made_by(lambda generate, given: calls.append(given) or generate(**given)):
        host.create_model_card(model_name="mine", dataset_name="someone/pairs", tags="tag")
    (given,) = calls
    return dict(given)


def test_the_card_is_made_by_generate_model_card_of_keywords_alone(facts: dict[str, Any]) -> None:
    read = {"base_model", "model_name", "hub_model_id", "dataset_name", "tags", "trainer_citation", "paper_id"}
    assert read <= set(facts), seam("generate_model_card(**facts)")
    assert (facts["model_name"], facts["dataset_name"]) == ("mine", "someone/pairs"), seam("the names are passed on")
    assert {"tag", "dpo", "trl"} <= set(facts["tags"]), seam("tags are the user's and TRL's")


def test_the_paper_and_its_citation_are_those_of_dpo(facts: dict[str, Any]) -> None:
    assert facts["paper_id"] == "2305.18290", seam("paper_id")
    assert facts["trainer_citation"].startswith("@inproceedings{rafailov2023direct"), seam("trainer_citation")


def test_the_card_that_is_returned_is_saved_in_the_output_folder(host: Any) -> None:
    with _trl.card_made_by(lambda generate, given: ModelCard("---\nlibrary_name: ours\n---\nours")):
        host.create_model_card()
    saved = Path(host.args.output_dir) / "README.md"
    assert saved.read_text().rstrip().endswith("ours"), seam("create_model_card saves README.md in args.output_dir")
    assert metadata_load(saved) == {"library_name": "ours"}


def test_a_card_shows_how_to_use_the_model_links_to_its_trackers_and_how_to_cite_trl(facts: dict[str, Any]) -> None:
    shown = {"hub_model_id": "someone/model", "wandb_url": "https://wandb.ai/run", "comet_url": "https://comet.com/run"}
    card = base_trainer.generate_model_card(**{**facts, **shown})
    start = _trl.quick_start(card)
    assert (start[:15], start[-3:]) == ("## Quick start\n", "```"), seam("the section Quick start")
    assert 'model="someone/model"' in start, seam("hub_model_id stands in the code")
    assert "Training procedure" not in start
    assert next(one[-len("(https://wandb.ai/run)") :] for one in _trl.badges(card)) == "(https://wandb.ai/run)", seam(
        "badges"
    )
    assert len(_trl.badges(card)) == 2
    citation = _trl.citation_of_trl(card)
    assert citation.startswith("Cite TRL as:\n\n```bibtex\n@software{"), seam("Cite TRL as:")
    assert citation.endswith("```"), seam("Cite TRL as:")


def test_text_and_metadata_of_a_card_can_be_replaced(facts: dict[str, Any]) -> None:
    card = base_trainer.generate_model_card(**{**facts, "dataset_name": None, "base_model": None})
    assert "datasets" not in card.data.to_dict(), seam("no dataset, no metadata")
    assert "base_model" not in card.data.to_dict(), seam("no base model, no metadata")
    card.data.datasets, card.text = ["someone/pairs"], "\ntext"
    assert "datasets:\n- someone/pairs" in str(card), seam("ModelCard.data is what is saved", "huggingface_hub")
    assert str(card).endswith("---\n\ntext"), seam("ModelCard.text is what is saved", "huggingface_hub")


class _Asked(Exception):
    pass


class Asked(DPOTrainer):
    def create_model_card(self, *args: Any, **keywords: Any) -> None:
        raise _Asked(args, keywords)


def test_a_checkpoint_asks_for_a_card_by_the_models_name_alone(tmp_path) -> None:
    run = runs.trainer(
        tmp_path / "mine", Asked, ref_model=tiny.model(), save_strategy="steps", save_steps=1, max_steps=1
    )
    with pytest.raises(_Asked) as asked:
        run.train()
    assert asked.value.args == ((), {"model_name": "mine"}), seam("_save_checkpoint calls create_model_card")


def test_pushing_asks_for_a_card_with_the_keywords_that_the_user_gives(tmp_path) -> None:
    run = runs.trainer(tmp_path / "mine", Asked, ref_model=tiny.model())
    run.hub_model_id = "someone/mine"
    with pytest.raises(_Asked) as asked:
        run.push_to_hub(dataset_name="someone/pairs")
    positional, keywords = asked.value.args
    assert not positional, seam("push_to_hub calls create_model_card with keywords", "transformers")
    assert set(keywords) == {"model_name", "dataset_name", "tags"}, seam("push_to_hub's keywords", "transformers")


def test_peft_writes_a_card_with_the_bases_path_beside_an_adapter(tmp_path) -> None:
    base = tiny.model()
    base.config._name_or_path = str(tmp_path / "base")
    peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    written = metadata_load(tmp_path / "adapter/README.md")
    assert written["base_model"] == str(tmp_path / "base"), seam("save_pretrained writes README.md", "PEFT")
    assert {"lora", "transformers"} <= set(written["tags"]), seam("tags of an adapter's card", "PEFT")
    assert (written["library_name"], written["pipeline_tag"]) == ("peft", "text-generation")


def test_the_newest_entry_of_the_log_is_there_when_callbacks_are_told_of_it(tmp_path: Path) -> None:
    class Told(TrainerCallback):
        entries: ClassVar[list[Any]] = []

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.entries.append(state.log_history[-1])

    run = runs.trained(tmp_path, DPOTrainer, callbacks=[Told()], ref_model=tiny.model(seed=1))
    fact = "an entry of the log stands at the end of state.log_history when on_log is called, once for each"
    assert run.state.log_history == Told.entries, seam(fact, "transformers")
    assert [entry["step"] for entry in Told.entries] == [1, 2, 3, 3], seam("every entry has its step", "transformers")
