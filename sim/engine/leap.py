class Leap:
    def __init__(self, replica): ...
    def run(self, stepwise):
        yield from ()
