"""Ask for the same prompt under different edits at once, with OpenAI's client, and save the pictures."""

import argparse
import asyncio
import base64
from pathlib import Path

import httpx
import openai


async def main() -> None:
    """Ask what edits there are, then for one picture without and one with each of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--prompt", default="a car in noto style")
    parser.add_argument("--output", type=Path, default=Path("pictures"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    async with httpx.AsyncClient() as http:
        edits = [edit["id"] for edit in (await http.get(f"{arguments.url}/v1/edits")).json()["data"]]

    # A replica that dies takes its requests with it: the client asks again, and another one answers.
    client = openai.AsyncOpenAI(base_url=f"{arguments.url}/v1", api_key="not needed", max_retries=5)

    async def draw(name: str | None) -> None:
        uses = [{"name": name, "strength": 1.0}] if name else []
        answer = await client.images.generate(prompt=arguments.prompt, extra_body={"edits": uses, "seed": 7})
        path = arguments.output / f"{name or 'plain'}.png"
        path.write_bytes(base64.b64decode(answer.data[0].b64_json))
        print(path)

    await asyncio.gather(*(draw(name) for name in [None, *edits]))


asyncio.run(main())
