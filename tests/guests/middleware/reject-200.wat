;; Rejects with status 200, which is not an error status.
(data (i32.const 1024) "\01\00\00\00\c8\00")
(HANDLE (i32.const 1024))
