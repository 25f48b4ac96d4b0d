;; Replaces every body with this one.
(data (i32.const 2048) "{\"model\":\"a\",\"temperature\":0,\"messages\":[{\"role\":\"user\",\"content\":\"other\"}]}")
(data (i32.const 1024) "\02\00\00\00")
(data (i32.const 1052) "\01\00\00\00\00\08\00\00\4c\00\00\00")
(HANDLE (i32.const 1024))
