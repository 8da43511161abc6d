import faust

app = faust.App("greeter", broker="kafka://kafka:9092")
hello = app.topic("hello", value_type=str)
greetings = app.topic("greetings", value_type=str)


@app.agent(hello, sink=[greetings])
async def greet(names):
    async for name in names:
        yield f"Hello {name}"
