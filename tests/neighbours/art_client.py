"""ART asks a server for rollouts, and reads groups of ours; run in its environment, prints JSON.

python art_client.py rollouts URL MODEL
python art_client.py tokens GROUPS.json TOKENIZER_FOLDER SITE_PACKAGES

``SITE_PACKAGES``: where torch and transformers are, which ART has only with its backend of some gigabytes.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import art
from openai.types.chat.chat_completion import Choice

ASK = [{"role": "user", "content": "Is Friday dry?"}]
NEXT = {"role": "user", "content": "And Monday?"}


async def rollout(model, seed):
    trajectory = art.Trajectory(messages_and_choices=[*ASK], metadata={"seed": seed})
    for turn in range(2):
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(),
            messages=trajectory.messages(),
            max_completion_tokens=8,
            seed=seed,
            logprobs=True,
            extra_body={"return_tokens_as_token_ids": True},
        )
        trajectory.messages_and_choices += [completion.choices[0], *([] if turn else [NEXT])]
    trajectory.reward = float(seed)
    return trajectory.finish()


async def fail():
    raise TimeoutError("the world did not answer")


async def rollouts(url, name):
    model = art.Model(
        name=name, project="p", inference_base_url=f"{url}/v1", inference_api_key=os.environ["SERVER_KEY"]
    )
    tried = art.TrajectoryGroup([*(rollout(model, seed) for seed in range(3)), fail()])
    [group] = await art.gather_trajectory_groups([tried], pbar_desc=None, max_exceptions=1)
    return json.loads(group.model_dump_json())


def tokens(path, folder, packages):
    sys.path.append(packages)  # the last place: what ART has of its own comes first
    from art.preprocessing.tokenize import tokenize_trajectory_groups
    from transformers import PreTrainedTokenizerFast

    def trajectory(fields):
        said = [Choice.model_validate(m) if "message" in m else m for m in fields["messages_and_choices"]]
        return art.Trajectory(**{**fields, "messages_and_choices": said})

    written = json.loads(Path(path).read_text())
    groups = [art.TrajectoryGroup(map(trajectory, group["trajectories"])) for group in written]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    results = tokenize_trajectory_groups(tokenizer, groups, False, True, shuffle_group_trajectories=False)
    return [
        {"ids": r.token_ids, "mask": r.assistant_mask, "logprobs": r.logprobs, "advantage": r.advantage}
        for r in results
    ]


job, *arguments = sys.argv[1:]
print(json.dumps(asyncio.run(rollouts(*arguments)) if job == "rollouts" else tokens(*arguments)))
