(HANDLE (unreachable))
