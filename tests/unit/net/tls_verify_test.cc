// Who is let in and who is not, by real handshakes; and that both ends learn why, in words.
#include <gmock/gmock.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <future>
#include <thread>

#include "net/openssl.h"
#include "net/tls_stream.h"
#include "tests/unit/net/fixture.h"
#include "wire/frame.h"

namespace tidemark::net {
namespace {

using namespace test;
using testing::AnyOf;
using testing::HasSubstr;

class TlsVerify : public testing::Test {
 protected:
  // Both streams run until both have ended.
  struct End {
    std::string server, client;
    Code server_code = Code::ok, client_code = Code::ok;
    bool server_let_in = false;
  };
  End meet(const std::shared_ptr<TlsContext>& server, const std::shared_ptr<TlsContext>& client) {
    Pair pair(io_, server, client);
    pair.start();
    EXPECT_TRUE(pair.both_closed());
    End end{pair.server_side.message(), pair.client_side.message(), Code::ok, Code::ok,
            pair.server_side.peer.has_value()};
    if (pair.server_side.error) end.server_code = pair.server_side.error->code;
    if (pair.client_side.error) end.client_code = pair.client_side.error->code;
    return end;
  }
  void expect_agent_refused(const Credentials& agent, const char* server_says, const char* agent_hears) {
    const End end = meet(pki_.server_context(), TlsContext::agent(agent).value());
    EXPECT_FALSE(end.server_let_in);
    EXPECT_EQ(end.server_code, Code::unauthenticated);
    EXPECT_EQ(end.client_code, Code::unauthenticated) << end.client;
    EXPECT_THAT(end.server, HasSubstr(server_says));
    EXPECT_THAT(end.client, HasSubstr(agent_hears));
  }
  void expect_server_refused(const Credentials& server, const char* agent_says, const char* server_hears) {
    const End end = meet(TlsContext::server(server, TicketKeys::make()).value(),
                         TlsContext::agent(pki_.machine(some_machine(1))).value());
    EXPECT_FALSE(end.server_let_in);
    EXPECT_EQ(end.client_code, Code::unauthenticated);
    EXPECT_EQ(end.server_code, Code::unauthenticated) << end.server;
    EXPECT_THAT(end.client, HasSubstr(agent_says));
    EXPECT_THAT(end.server, HasSubstr(server_hears));
  }

  // A certificate outside what net/ would ever issue.
  static Credentials forge(const KeyAndCertificate* signer, const std::string& ca_pem, const char* extended_key_usage,
                           const char* alternative) {
    const KeyPtr key(EVP_EC_gen("P-256"));
    const X509Ptr certificate(X509_new());
    X509_set_version(certificate.get(), 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -60);
    X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 3600);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate.get()), "CN", MBSTRING_ASC,
                               reinterpret_cast<const unsigned char*>("forged"), -1, -1, 0);
    X509_set_pubkey(certificate.get(), key.get());
    for (const auto& [nid, value] :
         {std::pair{NID_ext_key_usage, extended_key_usage}, {NID_subject_alt_name, alternative}}) {
      X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, nid, value);
      X509_add_ext(certificate.get(), extension, -1);
      X509_EXTENSION_free(extension);
    }
    X509Ptr issuer;
    KeyPtr issuer_key;
    if (signer != nullptr) {
      issuer = read_certificate(signer->certificate_pem, "").value();
      issuer_key = read_key(signer->key_pem, "").value();
    }
    X509_set_issuer_name(certificate.get(), X509_get_subject_name(issuer ? issuer.get() : certificate.get()));
    X509_sign(certificate.get(), issuer_key ? issuer_key.get() : key.get(), EVP_sha256());
    const auto pem = [](auto write, auto* object) {
      const BioPtr bio(BIO_new(BIO_s_mem()));
      write(bio.get(), object);
      char* data = nullptr;
      const long size = BIO_get_mem_data(bio.get(), &data);
      return std::string(data, static_cast<std::size_t>(size));
    };
    return {pem([](BIO* b, X509* c) { PEM_write_bio_X509(b, c); }, certificate.get()),
            pem([](BIO* b, EVP_PKEY* k) { PEM_write_bio_PrivateKey(b, k, nullptr, nullptr, 0, nullptr, nullptr); },
                key.get()),
            ca_pem};
  }

  // A blocking OpenSSL client with settings of the test's choice. Returns the reason its handshake or first read
  // failed.
  static std::string raw_client(std::uint16_t port, const std::function<void(SSL_CTX*)>& configure) {
    asio::io_context io;
    asio::ip::tcp::socket socket(io);
    socket.connect({asio::ip::address_v4::loopback(), port});
    socket.non_blocking(false);
    SSL_CTX* context = SSL_CTX_new(TLS_client_method());
    configure(context);
    SSL* ssl = SSL_new(context);
    SSL_set_fd(ssl, socket.native_handle());
    std::string reason = "none";
    char byte = 0;
    if (SSL_connect(ssl) != 1 || SSL_read(ssl, &byte, 1) <= 0) reason = take_openssl_reason();
    SSL_free(ssl);
    SSL_CTX_free(context);
    return reason;
  }
  static void offer_ours(SSL_CTX* context) {
    SSL_CTX_set_alpn_protos(context, reinterpret_cast<const unsigned char*>("\x0atidemark/1"), 11);
  }
  struct Meeting {
    std::string client, server;
    Code code = Code::ok;
  };
  Meeting meet_raw(const std::function<void(SSL_CTX*)>& configure) {
    asio::ip::tcp::acceptor acceptor(io_, {asio::ip::address_v4::loopback(), 0});
    auto client = std::async(std::launch::async, raw_client, acceptor.local_endpoint().port(), configure);
    asio::ip::tcp::socket socket(io_);
    acceptor.accept(socket);
    ReceiveBuffer buffer;
    Recorder recorder;
    TlsStream stream(std::move(socket), pki_.server_context(), buffer, recorder);
    stream.start();
    EXPECT_TRUE(run_until(io_, [&] { return recorder.closed != 0; }));
    EXPECT_FALSE(recorder.peer);
    return {client.get(), recorder.message(), recorder.error ? recorder.error->code : Code::ok};
  }

  Pki pki_;
  asio::io_context io_;
};

TEST_F(TlsVerify, AnExpiredMachineIsToldSo) {
  expect_agent_refused(pki_.machine(some_machine(1), now_us() - 2 * kHourMicros, std::chrono::hours(1)), "has expired",
                       "refuses our certificate: it has expired");
}

TEST_F(TlsVerify, AMachineFromTheFutureIsToldToLookAtItsClock) {
  expect_agent_refused(pki_.machine(some_machine(1), now_us() + kHourMicros), "not valid yet", "clocks");
}

TEST_F(TlsVerify, AMachineOfAnotherAuthorityIsRefused) {
  const Pki other("other authority");
  Credentials agent = other.machine(some_machine(1));
  agent.ca_pem = pki_.authority.certificate_pem;
  expect_agent_refused(agent, "unknown authority", "authority it does not know");
}

TEST_F(TlsVerify, AMachineOfAnotherAuthorityWithTheSameNameIsRefused) {
  const Pki other;
  Credentials agent = other.machine(some_machine(1));
  agent.ca_pem = pki_.authority.certificate_pem;
  expect_agent_refused(agent, "unknown authority", "refuses our certificate");
}

TEST_F(TlsVerify, ASelfSignedMachineIsRefused) {
  const std::string uri = "URI:tidemark:machine:" + some_machine(1).to_string();
  expect_agent_refused(forge(nullptr, pki_.authority.certificate_pem, "clientAuth", uri.c_str()), "self-signed",
                       "authority it does not know");
}

TEST_F(TlsVerify, AServersCertificateIsNoMachines) {
  Credentials agent = pki_.server_credentials();
  expect_agent_refused(agent, "not one of a machine", "another purpose");
}

TEST_F(TlsVerify, AMachineCannotSignMachines) {
  const Credentials machine = pki_.machine(some_machine(1));
  const KeyAndCertificate signer{machine.key_pem, machine.certificate_pem};
  const std::string uri = "URI:tidemark:machine:" + some_machine(2).to_string();
  expect_agent_refused(forge(&signer, pki_.authority.certificate_pem, "clientAuth", uri.c_str()), "unknown authority",
                       "authority it does not know");
}

TEST_F(TlsVerify, AMachineCannotPoseAsTheServer) {
  expect_server_refused(pki_.machine(some_machine(2)), "not one of a", "refuses our certificate");
}

TEST_F(TlsVerify, AServerOfAnotherAuthorityIsRefused) {
  const Pki other("other authority");
  Credentials server = other.server_credentials();
  server.ca_pem = pki_.authority.certificate_pem;
  expect_server_refused(server, "unknown authority", "authority it does not know");
}

TEST_F(TlsVerify, AnExpiredServerIsRefused) {
  const auto old = issue_server(pki_.authority, {}, now_us() - 2 * kHourMicros, std::chrono::hours(1)).value();
  expect_server_refused({old.certificate_pem, old.key_pem, pki_.authority.certificate_pem}, "has expired",
                        "has expired");
}

TEST_F(TlsVerify, AServerMustCarryTheServersName) {
  expect_server_refused(forge(&pki_.authority, pki_.authority.certificate_pem, "serverAuth", "DNS:web.example"),
                        "not one of a Tidemark server", "refuses our certificate");
}

TEST_F(TlsVerify, WhoEnrolsTrustsThePinnedAuthorityOnly) {
  const auto pin = describe_certificate(pki_.authority.certificate_pem)->sha256;
  Pair pair(io_, pki_.server_context(), TlsContext::enrolling(pin).value());
  ASSERT_TRUE(pair.handshake()) << pair.client_side.message();
  EXPECT_EQ(pair.server_side.peer->alpn, wire::kAlpnEnroll);
  EXPECT_FALSE(pair.server_side.peer->has_certificate);
  EXPECT_TRUE(pair.server_side.peer->machine.is_nil());

  const Pki other;
  const End end = meet(other.server_context(), TlsContext::enrolling(pin).value());
  EXPECT_FALSE(end.server_let_in);
  EXPECT_EQ(end.client_code, Code::unauthenticated);
  EXPECT_THAT(end.client, HasSubstr("not the server the token was made for"));
  EXPECT_EQ(end.server_code, Code::unauthenticated);
}

TEST_F(TlsVerify, WhoEnrolsIsNotTakenInByAMachineUnderTheRightAuthority) {
  const auto pin = describe_certificate(pki_.authority.certificate_pem)->sha256;
  const End end = meet(TlsContext::server(pki_.machine(some_machine(1)), TicketKeys::make()).value(),
                       TlsContext::enrolling(pin).value());
  EXPECT_EQ(end.client_code, Code::unauthenticated);
  EXPECT_THAT(end.client, HasSubstr("not one of a"));
}

TEST_F(TlsVerify, AnExpiredMachineCannotComeBackByResumption) {
  // The first connection must fall into the certificate's life of some seconds; on a machine too slow for that the
  // second one is refused all the same, as it has nothing to resume.
  const WallMicros issued = now_us();
  const auto agent = TlsContext::agent(pki_.machine(some_machine(1), issued, std::chrono::seconds(4))).value();
  const auto server = pki_.server_context();
  {
    Pair first(io_, server, agent);
    if (first.handshake()) {
      first.server->write(bytes_of("x"));  // read after the ticket
      EXPECT_TRUE(run_until(io_, [&] { return first.client_side.received == "x"; }));
    }
  }
  std::this_thread::sleep_for(std::chrono::microseconds(std::max<WallMicros>(0, issued + 5'000'000 - now_us())));
  const End end = meet(server, agent);
  EXPECT_FALSE(end.server_let_in);
  EXPECT_EQ(end.server_code, Code::unauthenticated);
  EXPECT_THAT(end.server, HasSubstr("has expired"));
}

TEST_F(TlsVerify, WithoutAlpnNobodyGetsIn) {
  const Meeting none = meet_raw([](SSL_CTX*) {});
  EXPECT_THAT(none.client, HasSubstr("no application protocol"));
  EXPECT_THAT(none.server, HasSubstr("ALPN"));
  EXPECT_EQ(none.code, Code::unsupported);
  const Meeting foreign = meet_raw(
      [](SSL_CTX* context) { SSL_CTX_set_alpn_protos(context, reinterpret_cast<const unsigned char*>("\x02h2"), 3); });
  EXPECT_THAT(foreign.client, HasSubstr("no application protocol"));
  EXPECT_THAT(foreign.server, HasSubstr("ALPN"));
}

TEST_F(TlsVerify, OldTlsAndWeakCiphersAreRefused) {
  const Meeting old = meet_raw([](SSL_CTX* context) {
    offer_ours(context);
    SSL_CTX_set_max_proto_version(context, TLS1_2_VERSION);
  });
  EXPECT_EQ(old.code, Code::unsupported);
  EXPECT_THAT(old.server, HasSubstr("TLS 1.3"));
  const Meeting cipher = meet_raw([](SSL_CTX* context) {
    offer_ours(context);
    SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256");
  });
  EXPECT_EQ(cipher.code, Code::unsupported);
  EXPECT_THAT(cipher.server, HasSubstr("no TLS parameters in common"));
}

TEST_F(TlsVerify, CredentialsThatDoNotFitTogetherAreFoundAtOnce) {
  Credentials mixed = pki_.server_credentials();
  mixed.key_pem = pki_.machine(some_machine(1)).key_pem;
  EXPECT_THAT(TlsContext::server(mixed, TicketKeys::make()).error().what, HasSubstr("does not belong"));
  mixed.key_pem = "";
  EXPECT_EQ(TlsContext::agent(mixed).error().code, Code::invalid_argument);
}

TEST_F(TlsVerify, TheOpensslToolCanTalkToTheServer) {
  if (std::system("command -v openssl >/dev/null") != 0) GTEST_SKIP() << "the openssl tool is not installed";
  const Credentials machine = pki_.machine(some_machine(9));
  const std::string directory = testing::TempDir() + "tidemark_net_" + std::to_string(::getpid());
  ASSERT_EQ(std::system(("mkdir -p " + directory).c_str()), 0);
  const auto put = [&](const char* name, const std::string& text) {
    FILE* file = std::fopen((directory + "/" + name).c_str(), "w");
    ASSERT_NE(file, nullptr);
    std::fwrite(text.data(), 1, text.size(), file);
    std::fclose(file);
  };
  put("ca.pem", machine.ca_pem);
  put("cert.pem", machine.certificate_pem);
  put("key.pem", machine.key_pem);
  asio::ip::tcp::acceptor acceptor(io_, {asio::ip::address_v4::loopback(), 0});
  const std::string command =
      "cd " + directory + " && (echo hello; sleep 30) | timeout 30 openssl s_client -quiet -connect 127.0.0.1:" +
      std::to_string(acceptor.local_endpoint().port()) +
      " -alpn tidemark/1 -tls1_3 -CAfile ca.pem -cert cert.pem -key key.pem -verify_return_error"
      " -verify_hostname tidemark-server > out 2> err";
  const pid_t child = ::fork();
  if (child == 0) {
    ::setpgid(0, 0);
    ::execl("/bin/sh", "sh", "-c", command.c_str(), static_cast<char*>(nullptr));
    ::_exit(127);
  }
  asio::ip::tcp::socket socket(io_);
  acceptor.accept(socket);
  ReceiveBuffer buffer;
  Recorder recorder;
  TlsStream stream(std::move(socket), pki_.server_context(), buffer, recorder);
  stream.start();
  EXPECT_TRUE(run_until(io_, [&] { return recorder.received == "hello\n" || recorder.closed != 0; }));
  EXPECT_EQ(recorder.received, "hello\n") << recorder.message();
  ASSERT_TRUE(recorder.peer);
  EXPECT_EQ(recorder.peer->machine, some_machine(9));
  stream.write(bytes_of("welcome\n"));
  stream.shutdown();
  EXPECT_TRUE(run_until(io_, [&] { return recorder.closed != 0; }));
  EXPECT_FALSE(recorder.error) << recorder.message();
  ::kill(-child, SIGTERM);  // the sleep that keeps its input open
  ::waitpid(child, nullptr, 0);
  const std::string check = "grep -q welcome " + directory + "/out";
  EXPECT_EQ(std::system(check.c_str()), 0);
  ASSERT_EQ(std::system(("rm -rf " + directory).c_str()), 0);
}

}  // namespace
}  // namespace tidemark::net
