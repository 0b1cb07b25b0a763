FROM node:22
COPY .npmrc package.json ./
RUN npm ci
