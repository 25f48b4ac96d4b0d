;; Zeros mean `continue`.
(HANDLE (i32.const 1024))
