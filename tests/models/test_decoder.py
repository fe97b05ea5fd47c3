"""Token ids as text for people."""

import random

import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.pipeline.decoding import decoder_of
from reflogp.stages.model.decoder import Decoder
from tests.checkpoints import make_tokenizer


def test_the_texts_of_tokens_join_to_the_text_even_where_characters_are_split(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    decoder = Decoder(tmp_path)
    text = "Größe 数学 👩‍👩‍👧 \n\n  end\ufffd <|im_end|>"
    ids = tokenizer(text)["input_ids"]
    texts = decoder.token_texts(ids)
    assert "".join(texts) == text
    assert len(texts) == len(ids)
    assert "" in texts  # a character of several tokens
    numbers = random.Random(0)
    for _ in range(200):  # broken characters anywhere
        ids = [numbers.randrange(len(tokenizer)) for _ in range(12)]
        assert "".join(decoder.token_texts(ids)) == tokenizer.decode(ids)


def test_special_tokens_are_known_and_stay_in_the_text(checkpoint):
    decoder = Decoder(checkpoint)
    tokenizer = make_tokenizer()
    ids = tokenizer("<|im_start|>user\nHi<|im_end|>")["input_ids"]
    assert decoder.text(ids) == "<|im_start|>user\nHi<|im_end|>"
    names = [decoder.text([number]) for number in sorted(decoder.special)]
    assert names == ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<end_of_turn>"]
    assert decoder.special.intersection(ids) == {ids[0], ids[-1]}


@pytest.mark.parametrize("state", ["gone", "changed", "broken"])
def test_a_tokenizer_that_is_not_the_caches_decodes_nothing(state, manifest, tmp_path, console):
    folder = tmp_path / "reference"
    if state != "gone":
        make_tokenizer(vocabulary=600).save_pretrained(folder)
    if state == "broken":
        (folder / "tokenizer_config.json").write_text("{")
    update = {"reference": manifest.reference.model_copy(update={"path": str(folder)})}
    assert decoder_of(manifest.model_copy(update=update), console) is None
    assert len(console.warned) == 1
    assert console.warned[0].startswith(f"token ids are not shown as text: {folder}")


def test_the_tokenizer_of_the_reference_decodes_its_cache(cache, manifest, console):
    decoder = decoder_of(manifests.read(cache), console)
    assert decoder is not None
    assert console.warned == []
    assert decoder.text([manifest.reference.stop_token_ids[0]]) == "<|im_end|>"
