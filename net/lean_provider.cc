#include "net/lean_provider.h"

#include <openssl/core.h>
#include <openssl/core_dispatch.h>
#include <openssl/crypto.h>
#include <openssl/provider.h>

#include <algorithm>
#include <initializer_list>
#include <string_view>
#include <vector>

#include "net/openssl.h"

namespace tidemark::net {
namespace {

// What the provider hands to OpenSSL. Set up once, under the lock of a static's initialisation, then only read.
struct Lean {
  OSSL_PROVIDER* whole = nullptr;  // OpenSSL's default provider
  OSSL_FUNC_provider_query_operation_fn* query_whole = nullptr;
  std::vector<OSSL_DISPATCH> dispatch;
  std::vector<OSSL_ALGORITHM> keys, decoders, encoders;
};
Lean lean;

// "EC:id-ecPublicKey:1.2.840.10045.2.1" is known by its first name.
std::string_view first_name(const OSSL_ALGORITHM& algorithm) {
  const std::string_view names(algorithm.algorithm_names);
  return names.substr(0, names.find(':'));
}

std::vector<OSSL_ALGORITHM> only(int operation, std::initializer_list<std::string_view> wanted) {
  std::vector<OSSL_ALGORITHM> kept;
  int no_cache = 0;
  const OSSL_ALGORITHM* all = lean.query_whole(OSSL_PROVIDER_get0_provider_ctx(lean.whole), operation, &no_cache);
  for (; all != nullptr && all->algorithm_names != nullptr; ++all) {
    if (std::ranges::find(wanted, first_name(*all)) != wanted.end()) kept.push_back(*all);
  }
  kept.push_back({});  // the end
  return kept;
}

const OSSL_ALGORITHM* query(void* provider, int operation, int* no_cache) {
  *no_cache = 0;
  switch (operation) {
    case OSSL_OP_KEYMGMT: return lean.keys.data();
    case OSSL_OP_DECODER: return lean.decoders.data();
    case OSSL_OP_ENCODER: return lean.encoders.data();
    default: return lean.query_whole(provider, operation, no_cache);
  }
}

int begin(const OSSL_CORE_HANDLE*, const OSSL_DISPATCH*, const OSSL_DISPATCH** dispatch, void** provider) {
  *dispatch = lean.dispatch.data();
  *provider = OSSL_PROVIDER_get0_provider_ctx(lean.whole);
  return 1;
}

OSSL_LIB_CTX* make() {
  OSSL_LIB_CTX* whole = OSSL_LIB_CTX_new();  // of its own, so that its inner look-ups do not come back to the lean one
  lean.whole = whole == nullptr ? nullptr : OSSL_PROVIDER_load(whole, "default");
  if (lean.whole == nullptr) return nullptr;
  for (const OSSL_DISPATCH* entry = OSSL_PROVIDER_get0_dispatch(lean.whole); entry->function_id != 0; ++entry) {
    if (entry->function_id == OSSL_FUNC_PROVIDER_TEARDOWN) continue;  // it is not ours to tear down
    lean.dispatch.push_back(*entry);
    if (entry->function_id != OSSL_FUNC_PROVIDER_QUERY_OPERATION) continue;
    lean.query_whole = OSSL_FUNC_provider_query_operation(entry);
    lean.dispatch.back().function = reinterpret_cast<void (*)()>(query);
  }
  lean.dispatch.push_back({});
  if (lean.query_whole == nullptr) return nullptr;
  lean.keys = only(OSSL_OP_KEYMGMT, {"EC", "X25519", "HMAC", "HKDF", "TLS1-PRF"});
  lean.decoders = only(OSSL_OP_DECODER, {"EC", "DER"});
  lean.encoders = only(OSSL_OP_ENCODER, {"EC"});
  OSSL_LIB_CTX* library = OSSL_LIB_CTX_new();
  if (library != nullptr && OSSL_PROVIDER_add_builtin(library, "tidemark-lean", begin) == 1 &&
      OSSL_PROVIDER_load(library, "tidemark-lean") != nullptr) {
    return library;
  }
  OSSL_LIB_CTX_free(library);
  ERR_clear_error();
  return nullptr;
}

}  // namespace

OSSL_LIB_CTX* lean_library() {
  static OSSL_LIB_CTX* const library = make();
  return library;
}

LeanScope::LeanScope() : before_(lean_library() == nullptr ? nullptr : OSSL_LIB_CTX_set0_default(lean_library())) {}
LeanScope::~LeanScope() {
  if (before_ != nullptr) OSSL_LIB_CTX_set0_default(before_);
}

}  // namespace tidemark::net
