#include "net/tls_core.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "net/lean_provider.h"

namespace tidemark::net {
namespace {

constexpr std::size_t kRecordHeaderSize = 5;
constexpr std::size_t kRecordSizeMax = (16 << 10) + 256;
constexpr std::size_t kRecordPlainMax = 16 << 10;
// RFC 8446 allows AES-GCM 2^24.5 records under one key; OpenSSL does not count. Terabytes may pass through a stream.
constexpr std::uint64_t kRekeyRecords = std::uint64_t{1} << 22;
constexpr std::size_t kKeptCapacityMax = 32 << 10;

}  // namespace

// What OpenSSL calls to fetch and to put ciphertext.
struct CoreBio {
  static TlsCore& of(BIO* bio) { return *static_cast<TlsCore*>(BIO_get_data(bio)); }

  static int read(BIO* bio, char* to, std::size_t size, std::size_t* got) {
    TlsCore& core = of(bio);
    BIO_clear_retry_flags(bio);
    if (core.record_left_ == 0) core.record_left_ = core.whole_record();
    if (core.record_left_ == 0) {
      BIO_set_retry_read(bio);
      *got = 0;
      return 0;
    }
    *got = std::min(size, core.record_left_);
    std::memcpy(to, core.input_.data(), *got);
    core.input_ = core.input_.subspan(*got);
    core.record_left_ -= *got;
    return 1;
  }

  static int write(BIO* bio, const char* from, std::size_t size, std::size_t* put) {
    of(bio).queue.append(std::as_bytes(std::span(from, size)));
    *put = size;
    return 1;
  }

  static long control(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

  static BIO_METHOD* method() {
    static BIO_METHOD* const made = [] {
      BIO_METHOD* m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "tidemark stream");
      TIDEMARK_CHECK(m != nullptr);
      BIO_meth_set_read_ex(m, read);
      BIO_meth_set_write_ex(m, write);
      BIO_meth_set_ctrl(m, control);
      return m;
    }();
    return made;
  }
};

void SendQueue::append(std::span<const std::byte> bytes) { bytes_.insert(bytes_.end(), bytes.begin(), bytes.end()); }

void SendQueue::pop(std::size_t size) {
  sent_ += size;
  TIDEMARK_CHECK(sent_ <= bytes_.size());
  if (sent_ == bytes_.size()) {
    clear();
  } else if (sent_ >= bytes_.size() / 2) {  // each byte is moved once at most, amortised
    bytes_.erase(bytes_.begin(), bytes_.begin() + static_cast<std::ptrdiff_t>(sent_));
    sent_ = 0;
  }
}

void SendQueue::clear() {
  bytes_ = {};
  sent_ = 0;
}

TlsCore::TlsCore(std::shared_ptr<TlsContext> context)
    : context_(std::move(context)), ssl_(SSL_new(context_->native())) {
  BIO* bio = BIO_new(CoreBio::method());
  TIDEMARK_CHECK(ssl_ != nullptr && bio != nullptr);  // fail only when memory is out
  BIO_set_data(bio, this);
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl_.get(), bio, bio);  // the SSL object owns it
  if (context_->is_server()) {
    SSL_set_accept_state(ssl_.get());
  } else {
    SSL_set_connect_state(ssl_.get());
    if (SSL_SESSION* session = context_->session(); session != nullptr && SSL_SESSION_is_resumable(session) == 1) {
      SSL_set_session(ssl_.get(), session);
    }
  }
}

TlsCore::~TlsCore() {
  // Otherwise OpenSSL takes the connection for a broken one and its session can never be resumed.
  SSL_set_shutdown(ssl_.get(), SSL_SENT_SHUTDOWN);
}

std::size_t TlsCore::whole_record() const {
  if (input_.size() < kRecordHeaderSize) return 0;
  const std::size_t body = std::to_integer<std::size_t>(input_[3]) << 8 | std::to_integer<std::size_t>(input_[4]);
  if (body > kRecordSizeMax || input_is_foreign()) return kRecordHeaderSize;  // OpenSSL refuses it by its header
  return input_.size() >= kRecordHeaderSize + body ? kRecordHeaderSize + body : 0;
}

bool TlsCore::input_is_foreign() const {
  if (input_.empty()) return false;
  const auto type = std::to_integer<unsigned>(input_[0]);
  return type < 20 || type > 23 || (input_.size() > 1 && std::to_integer<unsigned>(input_[1]) != 3);
}

void TlsCore::take_kept(std::span<std::byte> to) {
  // std::ranges::copy goes byte by byte here (gcc 12).
  if (const auto bytes = kept(); !bytes.empty()) std::memcpy(to.data(), bytes.data(), bytes.size());
  kept_.clear();  // its memory is wanted again soon, as long as bytes flow
  kept_at_ = 0;
}

void TlsCore::offer_kept() {
  input_ = kept();
  input_is_kept_ = true;
}

void TlsCore::keep_rest() {
  TIDEMARK_CHECK(record_left_ == 0 || input_.empty() || input_.size() >= record_left_);
  if (input_is_kept_) {
    kept_at_ = kept_.size() - input_.size();
  } else {
    if (kept_.capacity() > kKeptCapacityMax) kept_ = {};
    kept_.assign(input_.begin(), input_.end());
    kept_at_ = 0;
  }
  if (input_.empty()) {
    kept_ = {};
    kept_at_ = 0;
  }
  input_ = {};
}

TlsCore::Outcome TlsCore::outcome_of(int result) {
  switch (SSL_get_error(ssl_.get(), result)) {
    case SSL_ERROR_NONE: return Outcome::done;
    case SSL_ERROR_WANT_READ: return Outcome::wants_input;
    case SSL_ERROR_ZERO_RETURN: return Outcome::closed_by_peer;
    default: return Outcome::failed;
  }
}

TlsCore::Outcome TlsCore::handshake() {
  const LeanScope lean;
  ERR_clear_error();
  return outcome_of(SSL_do_handshake(ssl_.get()));
}

TlsCore::Outcome TlsCore::read(std::span<std::byte> space, std::size_t& size) {
  ERR_clear_error();
  size = 0;
  return outcome_of(SSL_read_ex(ssl_.get(), space.data(), space.size(), &size));
}

bool TlsCore::write(std::span<const std::byte> bytes) {
  if (bytes.empty()) return true;
  if (records_since_rekey_ >= kRekeyRecords && !rekey()) return false;
  records_since_rekey_ += (bytes.size() + kRecordPlainMax - 1) / kRecordPlainMax;
  ERR_clear_error();
  std::size_t put = 0;
  return SSL_write_ex(ssl_.get(), bytes.data(), bytes.size(), &put) == 1 && put == bytes.size();
}

void TlsCore::say_goodbye() {
  ERR_clear_error();
  if (SSL_is_init_finished(ssl_.get()) == 1) SSL_shutdown(ssl_.get());  // the peer's answer is not waited for
  ERR_clear_error();
}

bool TlsCore::rekey() {
  ERR_clear_error();
  records_since_rekey_ = 0;
  return SSL_key_update(ssl_.get(), SSL_KEY_UPDATE_NOT_REQUESTED) == 1 && SSL_do_handshake(ssl_.get()) == 1;
}

}  // namespace tidemark::net
