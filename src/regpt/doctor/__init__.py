"""Before anything long: does it fit, how long will it take, what will it cost, does it learn?"""
