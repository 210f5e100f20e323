"""The batch that benchmarks/transformers_checks.py hands to transformers' own checks, which need a download."""

import pytest
import tiny
import torch
import transformers_checks

from vaemotionllm import VAEmotionLLMForConditionalGeneration


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_each_row_of_the_batch_is_a_sample_with_sound_and_sight(tmp_path, family):
    tester = transformers_checks.Tester(transformers_checks.tiny_config(family, tmp_path))
    config, inputs = tester.prepare_config_and_inputs_for_common()
    model = VAEmotionLLMForConditionalGeneration(config).eval()
    with torch.no_grad():
        together = model(**inputs)
        assert together.logits.shape == (tester.batch_size, tester.seq_length, tester.vocab_size)
        assert together.valence.isfinite().all()  # on all three modalities
        alone = model(**{name: value[3:4] for name, value in inputs.items()})
    torch.testing.assert_close(alone.logits[0], together.logits[3], rtol=1e-4, atol=1e-5)
