;; Creates handles of its own resource in a loop.
(import "[export]things" "[resource-new]thing" (func $new (param i32) (result i32)))
(func (export "things#[constructor]thing") (result i32) (call $new (i32.const 1)))
(ADVISE
  (loop $again (drop (call $new (i32.const 1))) (br $again))
  (i32.const 2048))
