"""vLLM as a contender: generates when told to on its standard input. Runs in an environment of its own.

First line in: settings (model, prompts, dtype, new, threads). Then one word a line: "sample" or "greedy". Each is
answered with a line of JSON on the file descriptor that was standard output; what vLLM prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    begun = time.perf_counter()
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
    from vllm.inputs import TokensPrompt  # type: ignore[import-not-found]

    llm = LLM(
        settings["model"],
        dtype=settings["dtype"],
        skip_tokenizer_init=True,
        max_model_len=settings["longest"],
        max_num_seqs=len(settings["prompts"]),
        enforce_eager=not settings["compiled"],
        enable_prefix_caching=False,
        disable_log_stats=True,
        seed=0,
    )
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in settings["prompts"]]

    def tell(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    tell({"seconds": time.perf_counter() - begun})
    for line in sys.stdin:
        greedy = line.strip() == "greedy"
        asked = SamplingParams(
            temperature=0.0 if greedy else 1.0, max_tokens=settings["new"], ignore_eos=True, detokenize=False
        )
        begun = time.perf_counter()
        made = llm.generate(prompts, asked, use_tqdm=False)
        seconds = time.perf_counter() - begun
        ids = [list(each.outputs[0].token_ids) for each in made]
        tell({"seconds": seconds, "tokens": sum(map(len, ids)), **({"ids": ids} if greedy else {})})


if __name__ == "__main__":
    main()
