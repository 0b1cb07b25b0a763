import itsdangerous

print(itsdangerous.Signer("secret").sign("hello").decode())
