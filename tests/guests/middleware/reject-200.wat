;; No status to refuse a request with.
(data (i32.const 1024) "\01\00\00\00\c8\00")
(HANDLE (i32.const 1024))
