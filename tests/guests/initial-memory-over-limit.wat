;; without memory
(memory (export "memory") 2000)
(ADVISE (i32.const 1024))
