//! An issuer of tokens, as Keycloak or Entra is: its document, its keys, and the tokens that it
//! signs. It fails on command.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

/// The audience of the tokens.
pub const AUDIENCE: &str = "pointsman";

/// How the issuer responds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// As it should.
    Good,
    /// It closes connections without a response, as if it could not be reached.
    Closed,
    /// This text in place of the document.
    Document(String),
    /// This text in place of the key set.
    KeySet(String),
    /// This status line and these headers, for all requests.
    Head(String),
}

/// An issuer on a port of its own.
#[derive(Debug)]
pub struct Issuer {
    pub port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    behaviour: Behaviour,
    /// The keys of the set, with their ids. The last one signs.
    keys: Vec<(String, Ed25519KeyPair)>,
    requests: Vec<String>,
}

impl Issuer {
    /// Starts an issuer with one key, `k1`.
    ///
    /// # Panics
    /// If no port is free.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State { behaviour: Behaviour::Good, keys: Vec::new(), requests: Vec::new() };
        let issuer = Self { port, state: Arc::new(Mutex::new(state)) };
        issuer.add_key("k1");
        let state = Arc::clone(&issuer.state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // An error is a client that has left.
                respond(&state, port, stream).ok();
            }
        });
        issuer
    }

    /// Returns its name, which is also the address of its document.
    pub fn url(&self) -> String {
        url(self.port)
    }

    pub fn behave(&self, behaviour: Behaviour) {
        self.state.lock().unwrap().behaviour = behaviour;
    }

    /// Adds a key, which signs from now on.
    pub fn add_key(&self, id: &str) {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let key = Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap();
        self.state.lock().unwrap().keys.push((id.to_owned(), key));
    }

    /// Removes all keys but the one that signs.
    pub fn remove_old_keys(&self) {
        let keys = &mut self.state.lock().unwrap().keys;
        keys.drain(..keys.len() - 1);
    }

    pub fn key_set(&self) -> Value {
        key_set(&self.state.lock().unwrap())
    }

    /// Returns the paths that were asked for.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    /// Returns the claims of a valid token of the tenant `acme`.
    pub fn claims(&self) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        json!({
            "iss": self.url(), "aud": AUDIENCE, "sub": "user-7", "tenant": "acme",
            "exp": now + 600, "iat": now,
        })
    }

    /// Returns a token with the claims of a valid one, of which these are replaced, or removed if
    /// they are null.
    pub fn token(&self, changes: &Value) -> String {
        let state = self.state.lock().unwrap();
        let (id, _) = state.keys.last().unwrap();
        let header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": id });
        drop(state);
        self.sign(&header, changes)
    }

    /// Returns a token with this header.
    pub fn sign(&self, header: &Value, changes: &Value) -> String {
        let mut claims = self.claims();
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        let (header, claims) = (header.to_string(), claims.to_string());
        let message = format!("{}.{}", base64url(header.as_bytes()), base64url(claims.as_bytes()));
        let state = self.state.lock().unwrap();
        let (_, key) = state.keys.last().unwrap();
        let signature = key.sign(message.as_bytes());
        format!("{message}.{}", base64url(signature.as_ref()))
    }
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}/realm")
}

fn key_set(state: &State) -> Value {
    let key = |(id, key): &(String, Ed25519KeyPair)| {
        let x = base64url(key.public_key().as_ref());
        json!({ "kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": id, "x": x })
    };
    json!({ "keys": state.keys.iter().map(key).collect::<Vec<_>>() })
}

fn respond(state: &Mutex<State>, port: u16, mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let (behaviour, keys) = {
        let mut state = state.lock().unwrap();
        state.requests.push(path.clone());
        (state.behaviour.clone(), key_set(&state).to_string())
    };
    let is_document = path.ends_with("/.well-known/openid-configuration");
    let jwks_uri = format!("{}/keys", url(port));
    let document = json!({ "issuer": url(port), "jwks_uri": jwks_uri, "scopes_supported": [] });
    let body = match behaviour {
        Behaviour::Closed => return Ok(()),
        Behaviour::Head(head) => return write!(stream, "{head}\r\ncontent-length: 0\r\n\r\n"),
        Behaviour::Document(text) if is_document => text,
        Behaviour::KeySet(text) if !is_document => text,
        Behaviour::Good | Behaviour::Document(_) | Behaviour::KeySet(_) => {
            if is_document {
                document.to_string()
            } else {
                keys
            }
        }
    };
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
    write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Encodes without padding.
pub fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..=chunk.len() {
            let digit = bits >> (18 - 6 * place) & 63;
            text.push(char::from(DIGITS[digit as usize]));
        }
    }
    text
}
