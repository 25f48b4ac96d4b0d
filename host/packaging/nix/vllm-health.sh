# Prints the HTTP status of /health, and succeeds if it is 200. 000 means that there is no response.
# usage: vllm-health [URL]
#
# Without URL, the server of vllm-server with the same environment is asked.

host=${VLLM_HOST:-127.0.0.1}
case $host in
  0.0.0.0) host=127.0.0.1 ;;
  "::") host="[::1]" ;;
  *:*) host="[$host]" ;;
esac
url=${1:-http://$host:${VLLM_PORT:-8000}/health}

# curl prints 000 if there is no response.
status=$(curl --silent --noproxy '*' --output /dev/null --write-out '%{http_code}' \
  --max-time 5 "$url") || true
echo "$status"
[ "$status" = 200 ]
