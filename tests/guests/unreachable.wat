(ADVISE unreachable)
