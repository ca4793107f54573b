"""Small random models and texts that tests make for themselves."""

import csv
from pathlib import Path

import numpy as np

WORDS = [f"w{i}" for i in range(60)] + ["good", "bad", "fine", "film", "match", "market", "."]


def make_encoder(folder, family="bert", n_layers=2, width=32, seed=0, labels=None, positions=66) -> Path:
    """A random encoder of a family with its tokenizer; with `labels`, as a classifier of these names."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = Path(folder)
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    vocabulary = {token: i for i, token in enumerate([*special.values(), *WORDS])}
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    for piece in [*letters, *(f"##{letter}" for letter in letters)]:
        vocabulary.setdefault(piece, len(vocabulary))
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    names = ["input_ids", "attention_mask"]
    if family in ("bert", "electra", "albert"):
        names.insert(1, "token_type_ids")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=names,
        **{f"{role}_token": token for role, token in special.items()},
    ).save_pretrained(folder)

    common = {"vocab_size": len(vocabulary), "pad_token_id": 0}
    shape = {"hidden_size": width, "num_hidden_layers": n_layers, "num_attention_heads": 4}
    sized = {**common, **shape, "intermediate_size": 2 * width, "max_position_embeddings": positions}
    configs = {
        "bert": lambda: transformers.BertConfig(**sized),
        "roberta": lambda: transformers.RobertaConfig(**sized, type_vocab_size=1),
        "xlm-roberta": lambda: transformers.XLMRobertaConfig(**sized, type_vocab_size=1),
        "electra": lambda: transformers.ElectraConfig(**sized, embedding_size=width // 2),
        "albert": lambda: transformers.AlbertConfig(**sized, embedding_size=width // 2),
        "distilbert": lambda: transformers.DistilBertConfig(
            **common, dim=width, n_layers=n_layers, n_heads=4, hidden_dim=2 * width, max_position_embeddings=positions
        ),
        "modernbert": lambda: transformers.ModernBertConfig(
            **sized, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, local_attention=16
        ),
    }
    config = configs[family]()
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: i for i, name in enumerate(labels)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = transformers.AutoModelForSequenceClassification if labels else transformers.AutoModel
        model = kind.from_config(config)
        for name, parameter in model.named_parameters():
            # The libraries' initial weights (sd .02) make near-linear blocks; larger ones make the layers differ.
            if parameter.dim() > 1 and "embeddings" not in name:
                torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    return folder


def louder(model, encoder):
    """The same classifier with larger weights in its head: fresh ones are so small that logits hardly tell layers apart."""
    import torch

    from layerprobe.encoder import head_parameter_names

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in sorted(head_parameter_names(model, encoder)):
            parameter = model.get_parameter(name)
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def write_csv(path, n=120, classes=2, seed=0) -> Path:
    """A learnable toy set with columns text, label: each class has words of its own among common ones."""
    rng = np.random.default_rng(seed)
    path = Path(path)
    own = [WORDS[50 + 3 * c : 53 + 3 * c] for c in range(classes)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(n):
            label = i % classes
            common = rng.choice(WORDS[:50], size=rng.integers(3, 12))
            words = [*common, *rng.choice(own[label], size=2)]
            rng.shuffle(words)
            writer.writerow([" ".join(words), f"class {'abcdefghij'[label]}"])
    return path
