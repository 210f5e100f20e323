"""`from_pretrained` where DeepSpeed shards a model while it is made: whole folders, and those without a backbone."""

import fork_server
import tiny
import training

SCRIPT = """
import sys
import deepspeed, torch
from safetensors.torch import load_file
from transformers import AutoModel
from transformers.integrations import HfDeepSpeedConfig
import vaemotionllm

deepspeed.init_distributed("gloo")
stage3 = {"stage": 3, "stage3_param_persistence_threshold": 0}
kept = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": stage3})
whole = load_file(f"{sys.argv[1]}/model.safetensors")
for folder in sys.argv[1:]:
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    parameters = dict(model.named_parameters())
    assert all(parameter.shape == (0,) for parameter in parameters.values()), "nothing was sharded"
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        found = {name.replace("vlm.model.language_model.", "vlm.model."): p for name, p in parameters.items()}
        found = {name.replace("vlm.model.visual.", "vlm.visual."): p for name, p in found.items()}
        assert set(found) <= set(whole), set(found) - set(whole)
        assert all(torch.equal(parameter.data, whole[name]) for name, parameter in found.items())
print("equal")
"""


def test_sharded_loading_gives_the_saved_weights(tmp_path):
    whole = tiny.make_vaemotionllm(tmp_path)
    tiny.write_audio_only(whole, tmp_path / "alone")
    done = fork_server.run_ranks(["-c", SCRIPT, whole, tmp_path / "alone"], training.process_environment(), ranks=1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "equal"
