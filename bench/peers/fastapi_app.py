"""`tiny` as tutorials of FastAPI serve a model: `uvicorn bench.peers.fastapi_app:app`."""

from fastapi import FastAPI
from pydantic import BaseModel

from bench.peers import network

app = FastAPI()
model = network.load("tiny")


class Item(BaseModel):
    """One row."""

    data: list[float]


@app.post("/predict")
async def predict(item: Item) -> dict[str, list[float]]:
    """Answer one row."""
    return {"output": network.numbers(model, [item.data])[0]}
