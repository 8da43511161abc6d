import faust

app = faust.App("bank", broker="kafka://kafka:9092", processing_guarantee="exactly_once", store="rocksdb://")
deposits = app.topic("deposits", value_type=float)
balances_out = app.topic("balances-out")
balances = app.Table("balances", default=float)


@app.agent(deposits)
async def add(stream):
    async for account, amount in stream.items():
        balances[account] += amount
        await balances_out.send(key=account, value=balances[account])
