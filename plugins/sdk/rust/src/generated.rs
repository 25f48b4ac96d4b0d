//! Bindings that are generated from the WIT.

#[allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    missing_debug_implementations,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the WIT, which documents it, and different for each target"
)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit/0.1",
        world: "policy",
        pub_export_macro: true,
        default_bindings_module: "pointsman_sdk::__bindings",
        additional_derives: [PartialEq],
    });
}

/// One world per optional hook, with the types of [`bindings`]. The exports of a component are the
/// union of the worlds it was built from, so any combination of hooks works without a world for
/// each combination.
#[allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    missing_debug_implementations,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the WIT, which documents it, and different for each target"
)]
pub mod hooks {
    macro_rules! hook {
        ($module:ident, $world:literal, $inline:literal) => {
            pub mod $module {
                wit_bindgen::generate!({
                    inline: $inline,
                    path: "../../../wit/0.1",
                    world: $world,
                    pub_export_macro: true,
                    with: {
                "pointsman:policy/types@0.1.3":
                    crate::generated::bindings::pointsman::policy::types,
            },
                });
            }
        };
    }

    hook!(
        on_failure,
        "pointsman:sdk/on-failure-hook",
        "package pointsman:sdk; world on-failure-hook { export pointsman:policy/on-failure@0.1.3; }"
    );
    hook!(
        on_complete,
        "pointsman:sdk/on-complete-hook",
        "package pointsman:sdk; world on-complete-hook { export \
         pointsman:policy/on-complete@0.1.3; }"
    );
    hook!(
        on_outcome,
        "pointsman:sdk/on-outcome-hook",
        "package pointsman:sdk; world on-outcome-hook { export pointsman:policy/on-outcome@0.1.3; }"
    );
    hook!(
        on_tick,
        "pointsman:sdk/on-tick-hook",
        "package pointsman:sdk; world on-tick-hook { export pointsman:policy/on-tick@0.1.3; }"
    );
}
