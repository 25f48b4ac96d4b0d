;; Imports an interface that no host provides.
(import "test:other/thing@1.0.0" "do-it" (func $do_it))
(HANDLE (call $do_it) (i32.const 1024))
