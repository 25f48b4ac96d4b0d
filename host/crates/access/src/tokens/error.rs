//! Why a token is refused: for the log in detail, for the client without.

/// The reason why a token is refused. It never contains a part of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It exceeds the maximum size.
    #[error("the token is too large")]
    TooLarge,
    /// It is not a signed token: not three parts, not base64url, or not JSON.
    #[error("invalid {0}")]
    Form(&'static str),
    /// Its algorithm is not one of `access.tokens.algorithms`.
    #[error("the algorithm of the signature is not accepted")]
    Algorithm,
    /// It has an extension that has to be understood (`crit`), or is of another kind (`typ`).
    #[error("unsupported header `{0}`")]
    Header(&'static str),
    /// Its key is not in the key set of the issuer.
    #[error("the key of the signature is not one of the issuer's")]
    UnknownKey,
    /// It names no key, and several keys of the issuer are of its type.
    #[error("the token does not say which key has signed it")]
    NoKeyId,
    /// It was not signed with the key, or was changed after it.
    #[error("invalid signature")]
    Signature,
    /// A claim is missing, has the wrong type, or is not what it has to be.
    #[error("missing or invalid claim `{0}`")]
    Claim(&'static str),
    /// It is valid later.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// It was valid before.
    #[error("the token has expired")]
    Expired,
    /// It is bound to a key of the client, which the host cannot check.
    #[error("the token is bound to a key of its client (`cnf`)")]
    Bound,
    /// Neither its claims nor the configuration give it a tenant and a group that may use the host.
    #[error("the token names no tenant or group that may use this host")]
    NotAllowed,
    /// The keys of the issuer could not be fetched, or are too old.
    #[error("there is no current key set of the issuer")]
    NoKeys,
}

/// What a client learns of it: not what is wrong with a token, which is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// The token is not valid.
    #[error("the token is not valid")]
    Invalid,
    /// The token was valid; the client needs a new one.
    #[error("the token has expired; refresh it, or sign in again")]
    Expired,
    /// The token is valid, and its bearer may not use the host.
    #[error("the token is valid, but its bearer may not use this host")]
    NotAllowed,
    /// The token cannot be checked at the moment.
    #[error("tokens cannot be checked at the moment")]
    Unavailable,
}

impl TokenError {
    /// Returns what the client learns of it.
    pub fn refusal(self) -> TokenRefusal {
        match self {
            Self::TooLarge
            | Self::Form(_)
            | Self::Algorithm
            | Self::Header(_)
            | Self::UnknownKey
            | Self::NoKeyId
            | Self::Signature
            | Self::Claim(_)
            | Self::NotYetValid
            | Self::Bound => TokenRefusal::Invalid,
            Self::Expired => TokenRefusal::Expired,
            Self::NotAllowed => TokenRefusal::NotAllowed,
            Self::NoKeys => TokenRefusal::Unavailable,
        }
    }
}
