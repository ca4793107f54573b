"""A LoRA adapter is a checkpoint: merged, it is the model that peft itself computes; what cannot be merged is refused."""

import json
import shutil

import pytest
import torch
from running import run_study, write_study
from tiny import make_encoder

from layerprobe.encoder import load_classifier, load_encoder
from layerprobe.errors import EncoderError


def make_adapter(base, folder, classes=2, seed=0, **options):
    """A LoRA adapter with random weights, saved by peft, and its logits on some tokens, computed by peft unmerged."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes)
        options = {"r": 4, "target_modules": ["query", "value"], "task_type": "SEQ_CLS", **options}
        adapted = get_peft_model(model, LoraConfig(**options)).eval()
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(folder)
        ids = torch.randint(10, 60, (3, 9))
        with torch.no_grad():
            logits = adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return folder, ids, logits


def rewritten(folder, target, **changes):
    folder = shutil.copytree(folder, target)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


# Where the head has further layers, an adapter must name them to be complete.
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {}),
        ("roberta", {"use_rslora": True, "lora_alpha": 3}),
        ("distilbert", {"target_modules": ["q_lin", "v_lin"]}),
        ("modernbert", {"target_modules": ["Wqkv"], "modules_to_save": ["head"], "use_dora": True}),
    ],
)
def test_the_merged_adapter_equals_peft_unmerged(tmp_path, family, options):
    base = make_encoder(tmp_path / "base", family)
    folder, ids, expected = make_adapter(base, tmp_path / "adapter", 3, **options)
    encoder = load_encoder(str(base))
    model = load_classifier(folder, encoder)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert not any("lora" in name or "modules_to_save" in name for name, _ in model.named_parameters())
    assert type(model).__name__.endswith("ForSequenceClassification") and not model.training
    assert set(model.state_dict()) == set(encoder.classifier(["a", "b", "c"], seed=0).state_dict())


def test_a_study_of_an_adapter_compares_it_with_its_base(tmp_path, tiny_bert, tiny_csv):
    folder, _, _ = make_adapter(tiny_bert, tmp_path / "adapter")
    overrides = (f"adaptation.methods=['checkpoint:{folder}']", "sae.layers=[]", "internals.parts=['weights']")
    result = run_study(write_study(tmp_path, tiny_bert, tiny_csv), tmp_path / "out", tmp_path / "home", *overrides)
    weights = result.table("weights")
    changed = weights[weights.relative_change > 0]
    assert set(changed.layer) == {1, 2} and set(changed.role) == {"query", "value"}
    assert (changed.stable_rank_change <= 4 + 1e-6).all()  # a stable rank is at most the rank, which is r
    drift = (
        result.table("similarity")
        .query("measure == 'cka' and unit == 'token' and rows == 'all'")
        .set_index("layer")
        .value
    )
    assert drift[0] == pytest.approx(1, abs=1e-12) and drift[1] < 1 and drift[2] < drift[0]


def test_adapters_that_cannot_be_used_are_refused(tmp_path, tiny_bert, tiny_encoder):
    folder, _, _ = make_adapter(tiny_bert, tmp_path / "adapter")

    def refused(path, words):
        with pytest.raises(EncoderError, match=words):
            load_classifier(path, tiny_encoder)

    with pytest.raises(EncoderError, match=r"is a PEFT adapter and not a model; .*checkpoint:"):
        load_encoder(str(folder))
    refused(rewritten(folder, tmp_path / "ia3", peft_type="IA3"), "of the type IA3; only LORA .*merge_and_unload")
    refused(
        rewritten(folder, tmp_path / "pissa", init_lora_weights="pissa"), "init_lora_weights = 'pissa'.*merge_and_un"
    )
    refused(rewritten(folder, tmp_path / "meg", megatron_config={"a": 1}), "has megatron_config")
    refused(rewritten(folder, tmp_path / "rank", r=8), "does not fit .* as encoder")
    refused(rewritten(folder, tmp_path / "target", target_modules=["query"]), "has weights of .*value")
    refused(rewritten(folder, tmp_path / "more", target_modules=["query", "value", "key"]), "lacks weights of .*key")
    (tmp_path / "more" / "adapter_config.json").write_text("{")
    refused(tmp_path / "more", "adapter_config.json of .* cannot be read")
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    refused(pickled, "pickle, which is never loaded")
    (pickled / "adapter_model.bin").unlink()
    refused(pickled, "has no adapter_model.safetensors")
    (pickled / "adapter_model.safetensors").write_bytes(b"\0" * 50)
    refused(pickled, "is damaged")
    bare, _, _ = make_adapter(tiny_bert, tmp_path / "bare", task_type="FEATURE_EXTRACTION", modules_to_save=None)
    refused(bare, "no trained classification head")
    other = make_encoder(tmp_path / "wider", width=64)
    refused(make_adapter(other, tmp_path / "of wider")[0], "does not fit")
    modern = make_encoder(tmp_path / "modern", "modernbert")
    part, _, _ = make_adapter(modern, tmp_path / "part", target_modules=["Wqkv"])
    with pytest.raises(EncoderError, match=r"lacks head.dense.*modules_to_save"):
        load_classifier(part, load_encoder(str(modern)))
