//! Validation of a component, function by function, before it is compiled.

use std::time::{Duration, Instant};

use wasmparser::{FuncValidatorAllocations, ValidPayload, Validator};

use crate::wasm::error::ComponentError;
use crate::wasm::features::{FEATURES, parser};

/// Timeout of validation. CPython's 18 MB take a third of a second, but for some modules the time
/// grows with the square of their length.
pub(crate) const VALIDATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Validates a component that the scan found to be within the limits.
///
/// # Errors
/// If the component is invalid; the error has the offset.
pub(crate) fn validate(bytes: &[u8]) -> Result<(), ComponentError> {
    validate_within(bytes, VALIDATION_TIMEOUT)
}

/// Validates like [`validate`], with another timeout.
pub(crate) fn validate_within(bytes: &[u8], timeout: Duration) -> Result<(), ComponentError> {
    let start = Instant::now();
    let mut validator = Validator::new_with_features(FEATURES);
    let mut scratch = FuncValidatorAllocations::default();
    for payload in parser().parse_all(bytes) {
        let valid = validator
            .payload(&payload.map_err(ComponentError::Invalid)?)
            .map_err(ComponentError::Invalid)?;
        if let ValidPayload::Func(function, body) = valid {
            let mut function = function.into_validator(scratch);
            function.validate(&body).map_err(ComponentError::Invalid)?;
            scratch = function.into_allocations();
        }
        if start.elapsed() >= timeout {
            return Err(ComponentError::Slow(timeout));
        }
    }
    Ok(())
}
