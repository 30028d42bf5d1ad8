import json
from tests.reward.test_soft_labels import _losses
def test_it(tiny_model_dir, tmp_path):
    with open("/tmp/data5/soft.jsonl","w") as f:
        for seed in range(8):
            f.write(json.dumps(_losses(tiny_model_dir, tmp_path/str(seed), seed))+"\n"); f.flush()
