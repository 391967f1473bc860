"""From a volume and a model to a finer volume: plan, memory, engines, tiles, and the account of what was
done.
"""
