"""Uses audio and images with the official OpenAI package, and prints `ok` if all responses are as expected.

    python openai_media.py PORT KEY

The host has the lane `whisper`, whose engine has all endpoints for audio and images.
"""

import asyncio
import io
import sys

import openai

port, key = sys.argv[1:3]
client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)


def audio(size=5_000):
    file = io.BytesIO(b"RIFF" + bytes(range(256)) * (size // 256))
    file.name = "naïve \"a\".wav"
    return file


transcribe = client.audio.transcriptions.create
result = transcribe(model="whisper", file=audio(), prompt="names: A", language="en", timestamp_granularities=["word", "segment"])
assert result.text == "word0 word1 word2 word3 word4", result
assert transcribe(model="whisper", file=audio(), response_format="text").strip() == result.text
assert "-->" in transcribe(model="whisper", file=audio(), response_format="srt")
verbose = transcribe(model="whisper", file=audio(), response_format="verbose_json")
assert verbose.segments[0].text == result.text, verbose
# Larger than what is kept in memory.
assert transcribe(model="whisper", file=audio(3_000_000)).text == result.text
chunks = list(transcribe(model="whisper", file=audio(), stream=True))
assert "".join(chunk.choices[0]["delta"]["content"] for chunk in chunks) == " " + result.text, chunks
assert client.audio.translations.create(model="whisper", file=audio()).text == result.text
try:
    transcribe(model="nope", file=audio())
    raise AssertionError("an unknown model")
except openai.NotFoundError as error:
    assert error.code == "model_not_found", error
try:
    client.with_options(api_key="wrong").audio.transcriptions.create(model="whisper", file=audio(10_000_000))
    raise AssertionError("a wrong key")
except openai.AuthenticationError as error:
    assert error.code == "invalid_api_key", error

speech = client.audio.speech.create(model="whisper", voice="alloy", input="hello").content
assert len(speech) == 5 * 4096 and speech[1] == 31, len(speech)
with client.audio.speech.with_streaming_response.create(model="whisper", voice="alloy", input="hello") as response:
    assert response.headers["content-type"] == "audio/mpeg", response.headers
    assert b"".join(response.iter_bytes()) == speech

images = client.images.generate(model="whisper", prompt="a pixel", n=2)
assert len(images.data) == 2 and images.data[0].b64_json.startswith("iVBOR"), images
events = [event.type for event in client.images.generate(model="whisper", prompt="a pixel", stream=True)]
assert events == ["image_generation.partial_image"] * 5 + ["image_generation.completed"], events
png = ("a.png", io.BytesIO(b"\x89PNG\r\n\x1a\n" + bytes(4000)), "image/png")
edited = client.images.edit(model="whisper", image=[png, png], mask=png, prompt="another pixel")
assert edited.data[0].b64_json == images.data[0].b64_json, edited
events = [event.type for event in client.images.edit(model="whisper", image=png, prompt="a pixel", stream=True)]
assert events[-1] == "image_edit.completed", events
assert client.images.create_variation(model="whisper", image=png).data


async def concurrently():
    other = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)
    calls = [other.audio.transcriptions.create(model="whisper", file=audio(2_000_000)) for _ in range(8)]
    for done in await asyncio.gather(*calls):
        assert done.text == result.text, done


asyncio.run(concurrently())
print("ok")
