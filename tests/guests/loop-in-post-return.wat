;; Returns valid advice, and then never returns from post-return.
(ADVISE (i32.const 1024))
(func (export "cabi_post_pointsman:policy/on-request@0.1.3#advise") (param i32) (loop $again (br $again)))
