python -m bytewax.run flow
